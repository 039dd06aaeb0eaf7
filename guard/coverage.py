"""What the tests of a policy never make happen."""

from collections.abc import Iterator
from dataclasses import dataclass

from guard.actions.escalate import Escalate
from guard.policy import Policy
from guard.policy_test import case_outcome
from guard.rules import Rule
from guard.types import Answer, Mode, Phase


@dataclass(frozen=True, slots=True)
class Coverage:
    """Rules that are switched off do not count."""

    num_rules: int
    unmatched: tuple[str, ...]
    """Rules that no test makes match, neither enforced nor in shadow."""
    unmissed: tuple[str, ...]
    """Rules that match in every test that reads their series: nothing shows that they let anything pass."""
    actions: tuple[str, ...]
    """Actions of the policy's rules that no test makes act."""
    answers: tuple[tuple[str, str], ...]
    """Rules that escalate, with what no test has their target answer: allow, block, or nothing in time."""
    phases: tuple[str, ...]
    """Phases that the policy's rules read and in which no test makes one match."""
    failures: bool
    """No test feeds a broken score, so nothing shows what `on_error` does."""

    @property
    def percent(self) -> float:
        return 100 * (1 - len(self.unmatched) / self.num_rules) if self.num_rules else 100.0

    @property
    def complete(self) -> bool:
        return not (
            self.unmatched or self.unmissed or self.actions or self.answers or self.phases or self.failures
        )


def coverage(policy: Policy) -> Coverage:
    """Run every test, and see what none of them reached."""
    rules = [rule for rule in policy.rules if rule.mode is not Mode.OFF]
    matched: set[str] = set()
    missed: set[str] = set()
    actions: set[str] = set()
    answered: set[tuple[str, Answer]] = set()
    phases: set[Phase] = set()
    failed = False
    for case in policy.tests:
        outcome = case_outcome(policy, case)
        found = [*outcome.matches, *outcome.shadow]
        now = {match.rule for match in found}
        given = {(Phase.PROMPT, name) for name in case.given.prompt}
        given |= {(Phase.RESPONSE, name) for name in case.given.response}
        matched |= now
        missed |= {rule.id for rule in rules if rule.reads & given} - now
        actions |= {match.action for match in outcome.matches}
        answered |= {(opinion.rule, opinion.advice.answer) for opinion in outcome.opinions}
        phases |= {match.phase for match in found}
        failed = failed or bool(outcome.failures)
    return Coverage(
        num_rules=len(rules),
        unmatched=tuple(rule.id for rule in rules if rule.id not in matched),
        unmissed=tuple(rule.id for rule in rules if rule.id in matched and rule.id not in missed),
        actions=tuple(dict.fromkeys(r.action.kind for r in rules if r.action.kind not in actions)),
        answers=tuple(_unanswered(rules, answered)),
        phases=tuple(p.value for p in Phase if p not in phases and any(p in _phases(r.reads) for r in rules)),
        failures=bool(rules) and not failed,
    )


def _unanswered(rules: list[Rule], answered: set[tuple[str, Answer]]) -> Iterator[tuple[str, str]]:
    for rule in rules:
        if rule.mode is Mode.ENFORCE and isinstance(rule.action, Escalate):
            for answer in (Answer.ALLOW, Answer.BLOCK, Answer.TIMEOUT):
                if (rule.id, answer) not in answered:
                    yield rule.id, answer.value


def _phases(reads: frozenset[tuple[Phase, str]]) -> set[Phase]:
    return {phase for phase, _ in reads}
