"""Decides one response: scores in, decisions out. It holds all state of the rules; nothing else here does.

Every rule advances at every token, whatever other rules did; the most severe enforced match wins.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np

from guard.actions.escalate import Escalate
from guard.actions.refusing import Refusing
from guard.conditions import Aggregates, Running, Verdict, compile_condition
from guard.errors import DeciderError
from guard.pending import Pending, pending
from guard.rules import Rule
from guard.types import (
    Advice,
    Decision,
    Effect,
    Emit,
    Failure,
    Hold,
    Match,
    Mode,
    OnError,
    Outcome,
    Phase,
    Score,
    Severity,
    Steer,
    StepScores,
    Stop,
    StopReason,
)

_HOLD = (Hold(),)
_UNAVAILABLE = (Stop(StopReason.UNAVAILABLE, "interlock_unavailable"),)


@dataclass(slots=True, eq=False)
class _Watch:
    """One rule on one response."""

    rule: Rule
    enforced: bool
    condition: Callable[[], Verdict]
    numbers: tuple[tuple[str, Running], ...]  # of its condition, by their text
    matched: bool = False
    failed: bool = False

    @property
    def steers(self) -> bool:
        return self.enforced and self.rule.action.severity is Severity.STEER


@dataclass(frozen=True, slots=True, order=True)
class _Bad:
    """A score that cannot be judged."""

    token: int
    monitor: str
    reason: str


@dataclass(slots=True)
class _Step:
    """What came of one step."""

    matches: list[Match] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    acting: list[Rule] = field(default_factory=list)  # enforced rules that are true now
    unavailable: bool = False


class Decider:
    """One per response. Call `decide` for each prompt chunk and then each response token, in order; then `finish`.

    A decision that asks for second opinions (`pending`) is followed by `resolve` before anything else.
    """

    def __init__(
        self, modes: Iterable[tuple[Rule, Mode]], *, waivers: tuple[str, ...] = (), turn: int = 1
    ) -> None:
        rules = [(rule, mode is Mode.ENFORCE) for rule, mode in modes if mode is not Mode.OFF]
        aggregates = Aggregates(turn)
        self._watches = [_watch(rule, enforced, aggregates) for rule, enforced in rules]
        self._prompt_feeds = aggregates.feeds(Phase.PROMPT)
        self._tokens = aggregates.tokens
        self._response_feeds = [
            (name, feed.push()) for name, feed in aggregates.feeds(Phase.RESPONSE).items()
        ]

        answering = [rule for rule, enforced in rules if enforced and rule.reads_response]
        limits = [rule.action.at_most_delivered for rule in answering if isinstance(rule.action, Refusing)]
        self._limit = min((limit for limit in limits if limit is not None), default=None)
        self._holdback = max((rule.holdback for rule in answering), default=0)

        self.outcome = Outcome()
        self.monitors: frozenset[tuple[Phase, str]] = frozenset().union(
            *(watch.rule.reads for watch in self._watches)
        )
        """The series that must be given at each step of their phase."""
        self.waivers = waivers
        """The exceptions that weakened some rule for this subject."""

        self.escalates = any(enforced and isinstance(rule.action, Escalate) for rule, enforced in rules)
        """Whether it may ask for a second opinion."""

        self._phase = Phase.PROMPT
        self._judged = 0  # tokens of the present phase
        self._emitted = 0
        self._pending: Pending | None = None
        self._ended = ""

    @property
    def holdback(self) -> int:
        """How many judged response tokens are kept back, so that a block can still catch them.

        Only rules that are enforced on this response's scores hold text back: a shadow rule has no effect.
        """
        return self._holdback

    @property
    def ended(self) -> bool:
        """A stop or `finish` ended the response: no step may follow."""
        return bool(self._ended)

    @property
    def pending(self) -> bool:
        """The last decision asks for second opinions, and `resolve` must be told of them next."""
        return self._pending is not None

    def fails_without(self, monitors: Collection[str], phases: Collection[Phase] = tuple(Phase)) -> bool:
        """Whether it could only refuse if it had no scores of these monitors in these phases: a rule that fails closed reads one."""
        return any(
            watch.enforced
            and watch.rule.on_error is OnError.CLOSED
            and any(name in monitors and phase in phases for phase, name in watch.rule.reads)
            for watch in self._watches
        )

    @property
    def all_matched(self) -> bool:
        """No rule is left that could still match."""
        return all(watch.matched for watch in self._watches)

    def decide(self, step: StepScores) -> Decision:
        """Judge the next prompt chunk or response token. Raises DeciderError if it is not the next one."""
        self._check_free("decide()")
        if step.phase is not self._phase or step.start != self._judged:
            told = f"{step.phase} token {step.start}, but the next is {self._phase} token {self._judged}"
            raise DeciderError(f"steps must be given in order, without gaps: got {told}")
        if step.phase is Phase.RESPONSE:
            return self._decide_response(step)
        return self._decide_prompt(step)

    def resolve(self, advice: Mapping[str, Advice]) -> Decision:
        """What follows from the second opinions that the last decision asked for, by rule: the end, or what had waited.

        Raises DeciderError if they are not those that were asked for.
        """
        waiting = self._pending
        if waiting is None:
            raise DeciderError("resolve() without a question: no second opinion was asked for")
        opinions = waiting.opinions(advice)
        self._pending = None
        self.outcome.opinions.extend(opinions)
        effects = None
        for (rule, action), opinion in zip(waiting.asking, opinions, strict=True):
            if not opinion.allowed:
                effects = action.refusal()
                self._ended = f"the stop by rule '{rule.id}'"
                self.outcome.action = Severity.BLOCK
                self.outcome.phase, self.outcome.token = waiting.phase, waiting.token
                break
        if effects is None:
            effects = self._go_on(waiting.phase, waiting.acting)
        return Decision(waiting.phase, waiting.token, effects, opinions=opinions)

    def finish(self) -> Decision:
        """The model ended the response, and every token of it was judged: what was held back may leave."""
        self._check_free("finish()")
        if self._phase is Phase.PROMPT:
            raise DeciderError("finish() before the end of the prompt: its rules were not decided")
        self._ended = "finish()"
        return Decision(Phase.RESPONSE, self._judged - 1, (Emit(self._judged),))

    def _check_free(self, call: str) -> None:
        if self._ended:
            raise DeciderError(f"{call} after {self._ended}: this response is over")
        if self._pending:
            raise DeciderError(f"{call} before resolve(): second opinions were asked for")

    # --- the prompt: pushed in bulk, decided once

    def _decide_prompt(self, step: StepScores) -> Decision:
        bad: list[_Bad] = []
        for monitor, feed in self._prompt_feeds.items():
            scores, found = _clean(step.scores.get(monitor), step.start, step.num_tokens)
            if found:
                bad.append(_Bad(found[0], monitor, found[1]))
            else:
                for extend in feed.extends:
                    extend(scores)
        self._judged += step.num_tokens
        token = self._judged - 1
        result = _Step()
        if bad:
            self._fail(Phase.PROMPT, bad, step.lost, result)
            # A prompt is judged as a whole: a rule that could not see all of it is not judged on the rest.
            blind = {(Phase.PROMPT, b.monitor) for b in bad}
            self._watches = [watch for watch in self._watches if not watch.rule.reads & blind]
        if not step.final:
            return self._conclude(Phase.PROMPT, token, result)
        self._settle([watch for watch in self._watches if watch.condition()], Phase.PROMPT, token, result)
        self._watches = [w for w in self._watches if w.rule.reads_response]
        self._phase = Phase.RESPONSE
        self._judged = 0
        return self._conclude(Phase.PROMPT, token, result)

    # --- the response: once per token, so the common path is kept short

    def _decide_response(self, step: StepScores) -> Decision:
        if step.num_tokens != 1:
            raise DeciderError(f"a response step has one token, not {step.num_tokens}")
        token = self._judged
        self._judged = self._tokens.value = token + 1
        bad = self._push(step.scores, token)
        true = [watch for watch in self._watches if watch.condition()]
        if not true and not bad:
            return Decision(Phase.RESPONSE, token, self._release())
        result = _Step()
        if bad:
            self._fail(Phase.RESPONSE, bad, step.lost, result)
            blind = {(Phase.RESPONSE, b.monitor) for b in bad}
            true = [watch for watch in true if not watch.rule.reads & blind]
        self._settle(true, Phase.RESPONSE, token, result)
        return self._conclude(Phase.RESPONSE, token, result)

    def _push(self, scores: Mapping[str, Sequence[Score]], token: int) -> list[_Bad]:
        """Advance every aggregate by one token; returns the scores that cannot be judged."""
        bad: list[_Bad] = []
        for monitor, push in self._response_feeds:
            try:
                (score,) = scores[monitor]
                if score.__class__ is not float:
                    if score is None:
                        continue
                    score = float(score)  # numpy's numbers must not leak into decisions
            except (KeyError, TypeError, ValueError, OverflowError):
                bad.append(_Bad(token, monitor, "missing"))
                continue
            if score - score == 0.0:  # so it is finite; nothing else says it as fast
                push(score)
            else:
                bad.append(_Bad(token, monitor, "nan"))
        return bad

    # --- both

    def _settle(self, true: list[_Watch], phase: Phase, token: int, result: _Step) -> None:
        """Record the rules whose condition is true now. Each matches once; steering is asked for as long as it holds."""
        for watch in true:
            if watch.enforced:
                result.acting.append(watch.rule)
            if not watch.matched:
                watch.matched = True
                result.matches.append(self._match(watch, phase, token))
        self._watches = [watch for watch in self._watches if not watch.matched or watch.steers]

    def _match(self, watch: _Watch, phase: Phase, token: int) -> Match:
        action = watch.rule.action
        mode = Mode.ENFORCE if watch.enforced else Mode.SHADOW
        values = {text: number.value for text, number in watch.numbers if number.value is not None}
        override = watch.rule.override
        match = Match(watch.rule.id, action.kind, action.severity, mode, phase, token, values, override)
        if not watch.enforced:
            self.outcome.shadow.append(match)
            return match
        self.outcome.matches.append(match)
        if action.severity > self.outcome.action:
            self.outcome.action = action.severity
            self.outcome.phase, self.outcome.token = phase, token
        return match

    def _fail(self, phase: Phase, bad: list[_Bad], lost: Mapping[str, str], result: _Step) -> None:
        """Record a failure of each rule that needed a bad score, once per rule."""
        bad = sorted(bad)
        for watch in self._watches:
            first = next((b for b in bad if (phase, b.monitor) in watch.rule.reads), None)
            if first is None:
                continue
            on_error = watch.rule.on_error
            if watch.enforced and on_error is OnError.CLOSED:
                result.unavailable = True
            if watch.failed:
                continue
            watch.failed = True
            mode = Mode.ENFORCE if watch.enforced else Mode.SHADOW
            reason = lost.get(first.monitor, first.reason)
            failure = Failure(watch.rule.id, first.monitor, reason, mode, on_error, phase, first.token)
            result.failures.append(failure)
            self.outcome.failures.append(failure)

    def _conclude(self, phase: Phase, token: int, result: _Step) -> Decision:
        return Decision(
            phase, token, self._effects(phase, token, result), tuple(result.matches), tuple(result.failures)
        )

    def _effects(self, phase: Phase, token: int, result: _Step) -> tuple[Effect, ...]:
        strongest = max(result.acting, key=lambda rule: rule.action.severity) if result.acting else None
        severity = strongest.action.severity if strongest else Severity.ALLOW
        if result.unavailable and severity is not Severity.BLOCK:
            self.outcome.unavailable = True
            self._ended = "the stop (guard unavailable)"
            return _UNAVAILABLE
        if strongest and severity >= Severity.REPLACE:
            self._ended = f"the stop by rule '{strongest.id}'"
            return strongest.action.effects(strongest.id)
        self._pending = pending(phase, token, result.acting)
        if self._pending:
            return self._pending.questions
        return self._go_on(phase, result.acting)

    def _go_on(self, phase: Phase, acting: Sequence[Rule]) -> tuple[Effect, ...]:
        """What a response that no rule ends has coming."""
        release = self._release() if phase is Phase.RESPONSE else _HOLD
        return (*_steering(acting), *release) if acting else release

    def _release(self) -> tuple[Effect, ...]:
        upto = self._judged - self._holdback
        if self._limit is not None and upto > self._limit:
            upto = self._limit
        if upto <= self._emitted:
            return _HOLD
        self._emitted = upto
        return (Emit(upto),)


def _watch(rule: Rule, enforced: bool, aggregates: Aggregates) -> _Watch:  # noqa: FBT001
    condition = compile_condition(rule.condition, aggregates)
    numbers = tuple((quantity.text, aggregates[quantity]) for quantity in rule.quantities)
    return _Watch(rule, enforced, condition, numbers)


def _steering(rules: Sequence[Rule]) -> tuple[Effect, ...]:
    """All effects of the rules that are true; of two that set the same vector, the first in the policy wins."""
    effects: dict[object, Effect] = {}
    for rule in rules:
        for effect in rule.action.effects(rule.id):
            effects.setdefault(effect.vector if isinstance(effect, Steer) else effect, effect)
    return tuple(effects.values())


def _clean(
    series: Sequence[Score] | None, start: int, num_tokens: int
) -> tuple[list[float], tuple[int, str] | None]:
    """A chunk's scores as Python floats without tokens outside the scope, or the first bad token and why."""
    if series is None:
        return [], (start, "missing")
    raw: list[Any] = series.tolist() if isinstance(series, np.ndarray) else list(series)
    try:
        scores = [float(score) for score in raw if score is not None]
    except (TypeError, ValueError, OverflowError):
        return [], (start, "missing")  # not numbers at all
    if not all(map(isfinite, scores)):
        first = next(i for i, score in enumerate(raw) if score is not None and not isfinite(score))
        return [], (start + first, "nan")
    if len(raw) != num_tokens:
        return [], (start + min(len(raw), num_tokens), "missing")
    return scores, None
