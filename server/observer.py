"""What is remembered of one choice: its metrics as it goes, and its decision record at the end."""

import asyncio
import math
from collections import deque
from datetime import datetime, timedelta

import structlog

from guard.audit import decision_record
from guard.decider import Decider
from guard.policy import Policy
from guard.types import Answer, Decision, Mode, OnError, Phase, Severity, Subject
from server.auditing.content import Capture
from server.engines.base import EngineBusy, RequestRefused, StepOutput
from server.limits.allowance import Allowance
from server.pipeline import Closed, Cut, LeakPreventedError
from server.scoring import Scorer
from server.service import Service
from server.stacks import raised_at
from server.telemetry.types import Told

_log = structlog.get_logger()

_OUTCOME = {
    Severity.ALLOW: "allowed",
    Severity.LOG: "allowed",
    Severity.ANNOTATE: "annotated",
    Severity.STEER: "steered",
    Severity.REPLACE: "replaced",
    Severity.BLOCK: "blocked",
}


_CUT_SHORT = frozenset(
    {"cancelled", "error", "shed"}
)  # their scores are of a part, so drift is not told from them


class ChoiceObserver:
    """Implements the pipeline's `Observer` for one choice."""

    def __init__(
        self,
        service: Service,
        policy: Policy,
        subject: Subject,
        decider: Decider,
        scorer: Scorer,
        *,
        decision_id: str,
        admitted_at: datetime,
        choice: int,
        num_prompt: int,
        stream: bool,
        allowance: Allowance | None = None,
        content: Capture | None = None,
        subject_hmac: str = "",
        shed: frozenset[str] = frozenset(),
    ) -> None:
        """shed: monitors that this choice does without, as their breakers are open."""
        self._service = service
        self._policy = policy
        self._subject = subject
        self._decider = decider
        self._scorer = scorer
        self._decision_id = decision_id
        self._choice = choice
        self._num_prompt = num_prompt
        self._stream = stream
        self._allowance = allowance or Allowance()
        self._content = content
        self._subject_hmac = subject_hmac
        self._shed = shed
        self._started = service.clock()
        self._admitted_at = admitted_at
        self._last_token: float | None = None
        self._prefilled: float | None = None
        self._first_released: float | None = None
        self._num_released = 0
        self._num_scored = dict.fromkeys(Phase, 0)
        self._decide_s = 0.0
        self._advised_s = 0.0
        self._steered: dict[str, tuple[int, float]] = {}  # by vector: from which token on, for how many
        self._held_since: deque[float] = deque()  # of a stream's tokens that have not left: when each was fed
        self._cut: Cut | None = None

    def stepped(self, step: StepOutput) -> None:
        self._num_scored[step.phase] += step.num_scored
        if step.final:
            self._prefilled = self._service.clock()
        if self._content is not None:
            self._content.add_reply("".join(token.text for token in step.tokens))
        if step.phase is Phase.RESPONSE and step.num_scored:
            now = self._service.clock()
            if self._last_token is not None:
                self._service.metrics.token_gap.observe(now - self._last_token)
            self._last_token = now
            if self._stream:
                self._held_since.append(now)

    def decided(self, decision: Decision, score_s: float, decide_s: float) -> None:
        metrics, seconds = self._service.metrics, score_s + decide_s
        metrics.scoring.observe(score_s)
        metrics.ruling.observe(decide_s)
        self._decide_s += seconds
        metrics.deciding[decision.phase].observe(seconds)
        if seconds > self._policy.budget_s:
            metrics.over_budget.inc()
        for match in decision.matches:
            matched = metrics.rule_matches.labels(match.rule, match.action, match.mode)
            matched.inc(exemplar=self._service.telemetry.exemplar())
        for failure in decision.failures:
            metrics.monitor_skipped.labels(failure.monitor, failure.reason).inc()
            if failure.mode is Mode.ENFORCE:
                disposition = "open" if failure.on_error is OnError.OPEN else "closed"
                metrics.failures.labels("monitor", disposition).inc()

    def resolved(self, decision: Decision) -> None:
        for opinion in decision.opinions:
            self._advised_s += opinion.advice.seconds
            if opinion.advice.answer not in {Answer.ALLOW, Answer.BLOCK}:
                disposition = "open" if opinion.allowed else "closed"
                self._service.metrics.failures.labels("second_opinion", disposition).inc()

    def released(self, num_tokens: int) -> None:
        if self._first_released is None:
            self._first_released = self._service.clock()
            metrics, seconds = self._service.metrics, self._first_released - self._started
            metrics.ttft.labels(metrics.model).observe(seconds, self._service.telemetry.exemplar())
        self._num_released += num_tokens
        if self._held_since:
            self._service.metrics.holdback.observe(self._service.clock() - self._held_since[0])
            for _ in range(min(num_tokens, len(self._held_since))):
                self._held_since.popleft()

    def steered(self, vector: str, for_tokens: int) -> None:
        if vector in self._steered:
            self._count_steered(vector)
        else:
            self._service.metrics.steered_choices.labels(vector).inc()
        self._steered[vector] = self._num_scored[Phase.RESPONSE], for_tokens or math.inf

    def _count_steered(self, vector: str) -> None:
        since, most = self._steered[vector]
        num_fed = min(most, self._num_scored[Phase.RESPONSE] - since)
        self._service.metrics.steered_tokens.labels(vector).inc(num_fed)

    def cut(self, why: Cut) -> None:
        self._cut = self._cut or why

    def ended(self, closed: Closed | None, error: BaseException | None) -> None:
        self._count(closed, error)
        self._tell_use()
        if isinstance(error, Exception):
            self._log_failure(error)
        self._service.telemetry.choice(lambda: self._told(closed, error))
        if self._service.audit is not None and self._is_recorded(closed):
            self._service.audit.write(self._record(closed, error))

    def _tell_use(self) -> None:
        """Tell what was used; nothing, if the engine never fed a token. A text that was only read is nobody's strike."""
        if any(self._num_scored.values()):
            is_read = self._subject.endpoint == "moderations"
            blocked = self._decider.outcome.action is Severity.BLOCK and not is_read
            self._allowance.ran(self._num_scored[Phase.RESPONSE], blocked=blocked)

    def _is_recorded(self, closed: Closed | None) -> bool:
        """Everything but a plain allowed reply; of those, the share that the policy asks for, by decision id."""
        outcome = self._decider.outcome
        plain = (
            closed is not None
            and outcome.action is Severity.ALLOW
            and not (outcome.failures or outcome.shadow)
        )
        return not plain or int(self._decision_id[:8], 16) < self._policy.log.sample * 2**32

    def _count(self, closed: Closed | None, error: BaseException | None) -> None:
        metrics, outcome = self._service.metrics, self._decider.outcome
        kind = self._kind(closed, error)
        metrics.requests.labels(metrics.model, self._subject.endpoint, kind).inc()
        metrics.duration.labels(metrics.model).observe(self._service.clock() - self._started)
        metrics.tokens.labels(metrics.model, "prompt").inc(self._num_scored[Phase.PROMPT])
        metrics.tokens.labels(metrics.model, "completion").inc(self._num_scored[Phase.RESPONSE])
        for vector in self._steered:
            self._count_steered(vector)
        if outcome.failures:
            metrics.uncovered.labels(metrics.model).inc()
        if kind == "shed":
            metrics.shed.labels("queue_full").inc()
        if isinstance(error, LeakPreventedError):
            metrics.leaks_prevented.inc()
        metrics.decisions.labels(outcome.action.name.lower(), outcome.phase or "none").inc()
        if outcome.action is Severity.BLOCK and outcome.phase is Phase.RESPONSE:
            metrics.block_delivered.observe(self._num_released)
        self._count_monitors(is_whole=kind not in _CUT_SHORT)

    def _count_monitors(self, *, is_whole: bool) -> None:
        """What each monitor came to: tokens that it scored, its highest score; and, for its breaker, whether it failed."""
        metrics = self._service.metrics
        maxima = {phase: self._scorer.maxima(phase) for phase in Phase}
        failed = {failure.monitor for failure in self._decider.outcome.failures}
        worked: set[str] = set()
        for phase, name in self._decider.monitors:
            highest = maxima[phase].get(name)  # None: no token was in its scope
            if name in failed or (highest is not None and not math.isfinite(highest)):
                failed.add(name)
                continue
            if self._num_scored[phase] and highest is not None:
                metrics.monitor_tokens.labels(name).inc(self._num_scored[phase])
                worked.add(name)
                metrics.monitor_score.labels(name, phase).observe(highest)
                if is_whole:
                    self._service.drift.observe(name, phase, highest)
        for name in (failed | worked) - self._shed:
            self._service.breakers.told(name, failed=name in failed)

    def _log_failure(self, error: Exception) -> None:
        """What failed and where; never its message, which may hold text of the request."""
        if isinstance(error, EngineBusy | RequestRefused):
            return  # an answer, not a failure
        cause = error.__cause__ or error
        _log.error(
            "a response failed",
            decision_id=self._decision_id,
            choice=self._choice,
            error=type(error).__name__,
            cause=type(cause).__name__,
            at=raised_at(cause)[-1:],
        )
        self._service.metrics.failures.labels("engine", "closed").inc()

    def _kind(self, closed: Closed | None, error: BaseException | None) -> str:
        if closed is None:
            match error:
                case None | asyncio.CancelledError() | GeneratorExit():
                    return "cancelled"
                case EngineBusy():
                    return "shed"
                case _:
                    return "error"
        if self._decider.outcome.unavailable:
            return "error"
        outcome = self._decider.outcome
        if outcome.action is not Severity.ESCALATE:
            return _OUTCOME[outcome.action]
        # it was let go on: what counts is what other rules did
        others = (m.severity for m in outcome.matches if m.severity is not Severity.ESCALATE)
        return _OUTCOME[max(others, default=Severity.ALLOW)]

    def _told(self, closed: Closed | None, error: BaseException | None) -> Told:
        outcome = self._decider.outcome
        lasted = timedelta(seconds=self._service.clock() - self._started)
        return Told(
            endpoint=self._subject.endpoint,
            model=self._subject.model,
            decision_id=self._decision_id,
            choice=self._choice,
            began=self._admitted_at,
            ended=self._admitted_at + lasted,
            first_token_s=None if self._first_released is None else self._first_released - self._started,
            num_prompt=self._num_prompt,
            num_response=self._num_scored[Phase.RESPONSE],
            num_delivered=self._num_released,
            finish=None if closed is None else closed.finish or "content_filter",
            outcome=self._kind(closed, error),
            action=outcome.action.name.lower(),
            phase=outcome.phase,
            policy=str(self._policy),
            rules=tuple(match.rule for match in outcome.matches),
            shadow=tuple(match.rule for match in outcome.shadow),
            maxima={
                (phase, name): score for phase in Phase for name, score in self._scorer.maxima(phase).items()
            },
            error=type(error).__name__ if isinstance(error, Exception) else None,
        )

    def _record(self, closed: Closed | None, error: BaseException | None) -> dict[str, object]:
        ended = self._service.clock()
        milestones = {"prefill": self._prefilled, "first_token": self._first_released, "total": ended}
        timing = {
            name: round((at - self._started) * 1000, 3) for name, at in milestones.items() if at is not None
        }
        timing["decide"] = round(self._decide_s * 1000, 3)
        if self._decider.outcome.opinions:
            timing["second_opinion"] = round(self._advised_s * 1000, 3)
        record = decision_record(
            decision_id=self._decision_id,
            ts=self._admitted_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            outcome=self._decider.outcome,
            subject=self._subject,
            policy=self._policy,
            scores=self._scorer.series(),
            series=self._service.series,
            waivers=self._decider.waivers,
            delivered_tokens=self._num_released,
            stream=self._stream,
            usage={"prompt_tokens": self._num_prompt, "completion_tokens": self._num_scored[Phase.RESPONSE]},
            timing_ms=timing,
            subject_hmac=self._subject_hmac,
            content=self._content.record() if self._content else None,
        )
        told = {"choice": self._choice, "outcome": self._kind(closed, error)}
        if self._cut is not None and closed is None:
            told["cut"] = self._cut
        return {**record, **told}
