"""What is wrong or doubtful in a policy's own tests: names that no rule has, and scores that no rule looks at."""

from collections.abc import Collection, Iterator, Sequence

from guard.actions.escalate import Escalate
from guard.errors import Problem, did_you_mean
from guard.expressions import Exceeds, budgets
from guard.rules import Rule
from guard.schema import CaseSpec
from guard.types import Phase
from guard.yaml_source import Path_, Source


def case_problems(
    source: Source, test: CaseSpec, path: Path_, rules: Sequence[Rule], before: Collection[str]
) -> Iterator[Problem]:
    """`rules` of the whole policy; `before`: the names of the tests that stand above this one in its file."""
    yield from _unknown_rules(source, test, path, {rule.id for rule in rules})
    asked = list(dict.fromkeys(budget for rule in rules for budget in budgets(rule.condition)))
    yield from _idle(source, test, path, rules, asked)
    for budget in asked:
        series, given = budget.series, test.given
        played = series.monitor in given.prompt or series.monitor in given.response
        if played and budget.threshold is None and given.threshold(series.monitor, budget.fpr) is None:
            told = f"{budget} is unknown in this test: no calibration is loaded, and no threshold given"
            hint = f"write for example given: {{thresholds: {{{series.monitor}: 0.9}}}}"
            yield source.problem((*path, "given"), "no-threshold", told, hint, severity="warning")
    if test.name in before:
        told, hint = f"two tests are called '{test.name}'", "failures are told by name"
        yield source.problem((*path, "name"), "duplicate-test", told, hint, severity="warning")


def _unknown_rules(source: Source, test: CaseSpec, path: Path_, known: Collection[str]) -> Iterator[Problem]:
    for key, names in (("rules", test.expect.rules), ("shadow", test.expect.shadow)):
        for i, name in enumerate(names or ()):
            if name not in known:
                told, hint = f"no rule is called '{name}'", did_you_mean(name, known)
                yield source.problem((*path, "expect", key, i), "unknown-rule", told, hint)


def _idle(
    source: Source, test: CaseSpec, path: Path_, rules: Sequence[Rule], asked: Sequence[Exceeds]
) -> Iterator[Problem]:
    """What a test gives and no rule takes up."""
    given = test.given
    read = frozenset().union(*(rule.reads for rule in rules))
    targets = {rule.action.to for rule in rules if isinstance(rule.action, Escalate)}
    for key, code, names, known, told in (
        ("thresholds", "unused-threshold", given.thresholds, {b.series.monitor for b in asked}, "asks for a budget of"),
        ("second_opinion", "unused-opinion", given.second_opinion, targets, "escalates to"),
        ("prompt", "unused-series", given.prompt, {m for of, m in read if of is Phase.PROMPT}, "reads, in the prompt,"),
        ("response", "unused-series", given.response, {m for of, m in read if of is Phase.RESPONSE}, "reads, in the response,"),
    ):  # fmt: skip
        for name in names:
            if name not in known:
                message, where = f"no rule {told} '{name}'", (*path, "given", key, name)
                hint = did_you_mean(name, known)
                yield source.problem(where, code, message, hint, at_key=True, severity="warning")
