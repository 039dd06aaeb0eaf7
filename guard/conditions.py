"""A condition at work: its calls become running aggregates, its tree a closure that says true, false or unknown."""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, assert_never

from guard.expressions import (
    And,
    Call,
    Comparison,
    Condition,
    Exceeds,
    Not,
    Number,
    Or,
    Quantity,
    Scalar,
    Test,
    Value,
    mirrored,
)
from guard.functions import FUNCTIONS, Aggregate
from guard.types import Phase

Verdict = bool | None
"""Kleene's three values; None is unknown. A rule fires only on True."""

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}


Push = Callable[[float], None]
Extend = Callable[[list[float]], None]


@dataclass(slots=True)
class Feed:
    """Where the scores of one series go: one by one, or many at once."""

    pushes: list[Push] = field(default_factory=list)
    extends: list[Extend] = field(default_factory=list)

    def push(self) -> Push:
        """One callable for all; where there is one only, as usual, the thing itself."""
        if len(self.pushes) == 1:
            return self.pushes[0]
        pushes = tuple(self.pushes)

        def push_each(score: float) -> None:
            for push in pushes:
                push(score)

        return push_each


class Running(Protocol):
    """A number that may change with every token. None: unknown."""

    value: float | None


@dataclass(slots=True)
class Cell:
    """A number that its owner sets."""

    value: float | None


class Aggregates:
    """All running numbers of one decider. Equal calls, in whichever rules they stand, share one."""

    def __init__(self, turn: int = 1) -> None:
        self.tokens = Cell(0)
        """Response tokens judged so far; the decider counts."""
        self._scalars = {"tokens": self.tokens, "turn": Cell(turn)}
        self._by_call: dict[Call, Aggregate] = {}

    def __getitem__(self, quantity: Quantity) -> Running:
        if isinstance(quantity, Scalar):
            return self._scalars[quantity.name]
        aggregate = self._by_call.get(quantity)
        if aggregate is None:
            aggregate = FUNCTIONS[quantity.function](quantity.window, quantity.need)
            self._by_call[quantity] = aggregate
        return aggregate

    def feeds(self, phase: Phase) -> dict[str, Feed]:
        """By monitor: what its scores in this phase must be given to. A conversation's go on from phase to phase."""
        feeds: dict[str, Feed] = {}
        for call, aggregate in self._by_call.items():
            series = call.series
            if phase in series.scope.phases:
                feed = feeds.setdefault(series.monitor, Feed())
                push: Push = aggregate.push
                extend: Extend = aggregate.extend
                if isinstance(call.over, Test):
                    push, extend = _through(score_test(call.over), push, extend)
                feed.pushes.append(push)
                feed.extends.append(extend)
        return feeds


def _through(test: Callable[[float], bool], push: Push, extend: Extend) -> tuple[Push, Extend]:
    return lambda score: push(test(score)), lambda scores: extend(list(map(test, scores)))


def score_test(test: Test) -> Callable[[float], bool]:
    """A test as a function of one score."""
    checks = [partial(_COMPARE[mirrored(symbol)], bound) for symbol, bound in test.bounds]  # `bound < score`
    if len(checks) == 1:
        return checks[0]
    return lambda score: all(check(score) for check in checks)


def compile_condition(condition: Condition, aggregates: Aggregates) -> Callable[[], Verdict]:
    """A condition as a function of the present state of its aggregates."""
    match condition:
        case Comparison():
            left, pairs = condition.first, []
            for symbol, right in condition.rest:
                pairs.append(_pair(left, symbol, right, aggregates))
                left = right
            return pairs[0] if len(pairs) == 1 else conjunction(pairs)
        case Exceeds():
            comparison = condition.comparison
            return _unknown if comparison is None else compile_condition(comparison, aggregates)
        case Not():
            return negation(compile_condition(condition.operand, aggregates))
        case And():
            return conjunction([compile_condition(operand, aggregates) for operand in condition.operands])
        case Or():
            return disjunction([compile_condition(operand, aggregates) for operand in condition.operands])
        case _:
            assert_never(condition)


def _pair(left: Value, symbol: str, right: Value, aggregates: Aggregates) -> Callable[[], Verdict]:
    compare = _COMPARE[symbol]
    match left, right:
        case Call() | Scalar(), Number(value=bound):
            aggregate = aggregates[left]

            def against_number() -> Verdict:
                value = aggregate.value
                return None if value is None else compare(value, bound)

            return against_number
        case Number(value=bound), Call() | Scalar():
            aggregate = aggregates[right]

            def number_against() -> Verdict:
                value = aggregate.value
                return None if value is None else compare(bound, value)

            return number_against
        case Call() | Scalar(), Call() | Scalar():
            one, other = aggregates[left], aggregates[right]

            def against_each_other() -> Verdict:
                a, b = one.value, other.value
                return None if a is None or b is None else compare(a, b)

            return against_each_other
        case Number(value=a), Number(value=b):  # only inside a chain: 0.1 < 0.2 < max(...)
            always = compare(a, b)
            return lambda: always
        case _:
            raise AssertionError(left, right)


def _unknown() -> Verdict:
    return None


def negation(operand: Callable[[], Verdict]) -> Callable[[], Verdict]:
    """Not unknown is unknown."""

    def verdict() -> Verdict:
        value = operand()
        return None if value is None else not value

    return verdict


def conjunction(operands: list[Callable[[], Verdict]]) -> Callable[[], Verdict]:
    """False if any is false; else unknown if any is; else true."""

    def verdict() -> Verdict:
        result: Verdict = True
        for operand in operands:
            value = operand()
            if value is False:
                return False
            if value is None:
                result = None
        return result

    return verdict


def disjunction(operands: list[Callable[[], Verdict]]) -> Callable[[], Verdict]:
    """True if any is true; else unknown if any is; else false."""

    def verdict() -> Verdict:
        result: Verdict = False
        for operand in operands:
            value = operand()
            if value is True:
                return True
            if value is None:
                result = None
        return result

    return verdict
