"""Runs the tests that policies carry with them. (Not a test module of this project: pytest does not collect it.)"""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from guard.expressions import budgets
from guard.policy import Policy
from guard.replay import Advise, replay
from guard.schema import CaseSpec, Given
from guard.series import parse_series
from guard.types import Advice, Answer, Escalate, Mode, Outcome, Phase, Score, Subject

DEFAULT_NOW = datetime(2000, 1, 1, tzinfo=UTC)
"""When a test does not say `now`."""


class Status(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    KNOWN_MISS = "known miss"  # marked so, and it fails, as it is known to
    FIXED = "known miss that passes"  # the mark can go


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What became of one test of a policy."""

    name: str
    status: Status
    expected: str
    actual: str
    differences: tuple[str, ...]  # one line for each part that is not as expected

    @property
    def ok(self) -> bool:
        return self.status is not Status.FAILED

    def __str__(self) -> str:
        lines = [f"{self.status}: {self.name}", *(f"  {line}" for line in self.differences)]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Report:
    """All tests of a policy, and the rules that none of them makes match."""

    results: tuple[CaseResult, ...]
    uncovered: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return all(result.ok for result in self.results)


def run_tests(policy: Policy) -> Report:
    """Run every test. The prompt is one chunk; monitors that a test does not mention are silent, not broken."""
    results: list[CaseResult] = []
    fired: set[str] = set()
    for case in policy.tests:
        outcome = case_outcome(policy, case)
        results.append(_judge(case, outcome, _unknown_budgets(policy, case)))
        fired.update(match.rule for match in (*outcome.matches, *outcome.shadow))
    uncovered = tuple(r.id for r in policy.rules if r.mode is not Mode.OFF and r.id not in fired)
    return Report(tuple(results), uncovered)


def case_outcome(policy: Policy, case: CaseSpec) -> Outcome:
    """What the policy makes of a test's scores."""
    given = case.given
    subject = Subject(
        tenant=given.tenant,
        model=given.model,
        endpoint=given.endpoint,
        key_id=given.key_id,
        metadata=given.metadata,
        turn=given.turn,
    )
    return replay(
        _under(policy, given),
        subject,
        _series(policy, given, Phase.PROMPT),
        _series(policy, given, Phase.RESPONSE),
        given.now or DEFAULT_NOW,
        rollout_bucket=given.rollout_bucket,
        advise=_advise(given),
    )


def _advise(given: Given) -> Advise:
    """A test's targets answer what it says; one that it does not mention is a failure of the test (`_judge`)."""

    def advise(question: Escalate, phase: Phase, token: int) -> Advice:
        return Advice(Answer(given.second_opinion.get(question.to, Answer.UNKNOWN)))

    return advise


def _under(policy: Policy, given: Given) -> Policy:
    """The policy with the thresholds that a test gives: they take the place of calibrated ones."""
    if not given.thresholds:
        return policy
    return policy.with_thresholds(lambda budget: given.threshold(budget.series.monitor, budget.fpr))


def _unknown_budgets(policy: Policy, case: CaseSpec) -> tuple[str, ...]:
    """What a test cannot have shown: `exceeds` of the monitors that it plays, where no threshold is known."""
    played = {*case.given.prompt, *case.given.response}
    asked = (budget for rule in _under(policy, case.given).rules for budget in budgets(rule.condition))
    told = [str(b) for b in dict.fromkeys(asked) if b.threshold is None and b.series.monitor in played]
    return tuple(f"note: {text} is unknown here: no calibration is loaded; give thresholds" for text in told)


def _series(policy: Policy, given: Given, phase: Phase) -> dict[str, tuple[Score, ...]]:
    texts = given.prompt if phase is Phase.PROMPT else given.response
    told = {name: parse_series(text) for name, text in texts.items()}
    num_tokens = max(map(len, told.values()), default=0)
    silent = {name: (None,) * num_tokens for of, name in policy.monitors if of is phase}
    return {**silent, **told}


def _judge(case: CaseSpec, outcome: Outcome, notes: tuple[str, ...]) -> CaseResult:
    expected = {part: _text(value) for part, value in case.expect if value is not None}
    happened = {
        "action": outcome.verdict,
        "rules": _text(tuple(match.rule for match in outcome.matches)),
        "shadow": _text(tuple(match.rule for match in outcome.shadow)),
        "phase": str(outcome.phase),
        "token": str(outcome.token),
    }
    differences = tuple(
        f"{part}: expected {wanted}, got {happened[part]}"
        for part, wanted in expected.items()
        if wanted != happened[part]
    )
    status = Status.FAILED if differences else Status.PASSED
    if case.known_miss:
        status = Status.KNOWN_MISS if differences else Status.FIXED
    if unanswered := _unanswered(outcome):
        status, differences = Status.FAILED, (*unanswered, *differences)
    return CaseResult(
        case.name, status, _told(expected), _told(happened), (*differences, *(notes if differences else ()))
    )


def _unanswered(outcome: Outcome) -> tuple[str, ...]:
    """A test that leaves open what a second opinion says shows nothing: neither that it blocks nor that it lets pass."""
    asked = dict.fromkeys((o.rule, o.to) for o in outcome.opinions if o.advice.answer is Answer.UNKNOWN)
    return tuple(
        f"second_opinion: rule '{rule}' asks '{to}'; write what it answers, for example "
        f"given: {{second_opinion: {{{to}: block}}}} (or allow, or timeout)"
        for rule, to in asked
    )


def _text(value: object) -> str:
    """Rules compare as a set: which of two came first is told by `token`."""
    return f"[{', '.join(sorted(value))}]" if isinstance(value, tuple) else str(value)


def _told(parts: dict[str, str]) -> str:
    return ", ".join(f"{part}: {text}" for part, text in parts.items())
