"""Rules that stand in each other's way: the same condition twice, and rules that a more severe one always forestalls."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from guard.actions.escalate import Escalate
from guard.actions.steer import Steer
from guard.alternatives import Alternative, alternatives, implies
from guard.expressions import Condition
from guard.rules import Rule
from guard.scope import Match
from guard.types import Mode, Severity


@dataclass(frozen=True, slots=True)
class Overlap:
    """What is doubtful about `rule`, because of `other`."""

    rule: Rule
    other: Rule
    code: str
    message: str
    hint: str


_MAX_COMPARISONS = 1_000_000
"""Of claims with each other, in all pairs of rules: a few seconds. What is left out then is a warning at most."""


def overlaps(rules: Sequence[Rule]) -> Iterator[Overlap]:
    """`rules` in the order in which they win."""
    forms = {rule.id: alternatives(rule.condition) for rule in rules}
    sizes = {name: sum(map(len, form or ())) for name, form in forms.items()}
    left = _MAX_COMPARISONS
    alike: dict[Condition, list[Rule]] = {}
    for i, rule in enumerate(rules):
        same = alike.setdefault(rule.condition, [])
        duplicate = next((other for other in same if _is_duplicate(rule, other)), None)
        same.append(rule)
        if duplicate:
            message = f"rule '{rule.id}' has the condition and the match of rule '{duplicate.id}'"
            yield Overlap(rule, duplicate, "duplicate-condition", message, "keep one of them")
            continue
        for j, other in enumerate(rules):
            wins = (other.action.severity, -j) > (rule.action.severity, -i)
            cost = sizes[other.id] * sizes[rule.id]
            if not (wins and cost <= left and _forestalls(other, rule)):
                continue
            left -= cost
            if _is_implied(forms[other.id], forms[rule.id]):
                does = f"would {rule.action.kind}, rule '{other.id}' has already matched and does {other.action.kind}"
                message = f"rule '{rule.id}' never acts: whenever it {does}"
                hint = "make its condition wider than the other's, or drop it"
                yield Overlap(rule, other, "shadowed", message, hint)
                break


def _is_duplicate(rule: Rule, other: Rule) -> bool:
    """Of two rules with one condition."""
    if rule.mode is not other.mode or rule.mode is Mode.OFF:
        return False
    if (
        isinstance(rule.action, Steer)
        and isinstance(other.action, Steer)
        and rule.action.vector != other.action.vector
    ):
        return False  # one condition for two vectors
    if (
        isinstance(rule.action, Escalate)
        and isinstance(other.action, Escalate)
        and rule.action.to != other.action.to
    ):
        return False  # two are asked
    return rule.match == other.match and rule.rollout == other.rollout


def _forestalls(other: Rule, rule: Rule) -> bool:
    """Whether `other` ends the response for everybody whom `rule` concerns. A `log` rule acts by being recorded."""
    return (
        not other.reads.isdisjoint(rule.reads)
        and other.mode is rule.mode is Mode.ENFORCE
        and other.action.severity >= Severity.REPLACE
        and rule.action.severity > Severity.LOG
        and other.rollout is None
        and (other.match == rule.match or other.match == Match())
    )


def _is_implied(conclusion: list[Alternative] | None, premise: list[Alternative] | None) -> bool:
    return conclusion is not None and premise is not None and implies(premise, conclusion)
