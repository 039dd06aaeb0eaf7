"""A condition as alternatives of claims: what can never hold together, and what implies what."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from math import inf
from typing import assert_never

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
    Test,
    Value,
    mirrored,
)

_NEGATED = {">": "<=", ">=": "<", "<": ">=", "<=": ">", "==": "!=", "!=": "=="}
_MAX_ALTERNATIVES = 64


@dataclass(frozen=True, slots=True)
class Limit:
    """A running number against a fixed one."""

    quantity: Quantity
    symbol: str
    number: float
    at: int = field(compare=False, default=0)

    def implies(self, other: "Limit") -> bool:
        """Whether `other` holds wherever this one does."""
        if self.quantity == other.quantity:
            return _Interval().cut(other).holds(_Interval().cut(self)) or self == other
        return (
            {self.symbol, other.symbol} <= {">", ">="}
            and _Interval().cut(other).holds(_Interval().cut(self))
            and _counts_fewer(self.quantity, other.quantity)
        )


@dataclass(frozen=True, slots=True)
class Opaque:
    """A claim that is only ever compared with its like: two running numbers, or a budget without a threshold."""

    claim: Comparison | Exceeds
    negated: bool


Claim = Limit | Opaque
Alternative = tuple[Claim, ...]
"""Claims that hold together."""


def alternatives(condition: Condition) -> list[Alternative] | None:
    """The condition as an `or` of `and`s; None if there are too many. Three-valued logic allows this rewriting."""
    try:
        return _alternatives(condition, negated=False)
    except OverflowError:
        return None


def contradiction(alternative: Alternative) -> Limit | None:
    """The first claim that cannot hold together with those before it."""
    intervals: dict[Quantity, _Interval] = {}
    for claim in alternative:
        if isinstance(claim, Limit):
            interval = intervals.get(claim.quantity, _Interval()).cut(claim)
            if interval.is_empty:
                return claim
            intervals[claim.quantity] = interval
    return None


def implies(premise: list[Alternative], conclusion: list[Alternative]) -> bool:
    """Whether the conclusion is true wherever the premise is. It may miss an implication, and never invents one."""
    return all(any(_together_imply(p, c) for c in conclusion) for p in premise)


def _together_imply(premise: Alternative, conclusion: Alternative) -> bool:
    return all(any(_claim_implies(p, c) for p in premise) for c in conclusion)


def _claim_implies(premise: Claim, conclusion: Claim) -> bool:
    if isinstance(premise, Limit) and isinstance(conclusion, Limit):
        return premise.implies(conclusion)
    return premise == conclusion


def _alternatives(condition: Condition, *, negated: bool) -> list[Alternative]:
    match condition:
        case Comparison():
            claims = [
                _claim(left, symbol, right, negated=negated) for left, symbol, right in pairs(condition)
            ]
            return [(claim,) for claim in claims] if negated else [tuple(claims)]
        case Exceeds():
            comparison = condition.comparison
            if comparison is None:
                return [(Opaque(condition, negated),)]
            return _alternatives(comparison, negated=negated)
        case Not():
            return _alternatives(condition.operand, negated=not negated)
        case And() | Or():
            parts = [_alternatives(operand, negated=negated) for operand in condition.operands]
            return _all_of(parts) if isinstance(condition, And) is not negated else _any_of(parts)
        case _:
            assert_never(condition)


def _any_of(parts: list[list[Alternative]]) -> list[Alternative]:
    return _checked([alternative for part in parts for alternative in part])


def _all_of(parts: list[list[Alternative]]) -> list[Alternative]:
    found: list[Alternative] = [()]
    for part in parts:
        found = _checked([(*one, *other) for one, other in product(found, part)])
    return found


def _checked(found: list[Alternative]) -> list[Alternative]:
    if len(found) > _MAX_ALTERNATIVES:
        raise OverflowError
    return found


def pairs(comparison: Comparison) -> Iterator[tuple[Value, str, Value]]:
    """The neighbours that a chained comparison compares."""
    left = comparison.first
    for symbol, right in comparison.rest:
        yield left, symbol, right
        left = right


def _claim(left: Value, symbol: str, right: Value, *, negated: bool) -> Claim:
    if isinstance(left, Number):
        left, symbol, right = right, mirrored(symbol), left
    if isinstance(left, Number) or not isinstance(right, Number):
        return Opaque(Comparison(left, ((symbol, right),)), negated)
    return Limit(left, _NEGATED[symbol] if negated else symbol, right.value, right.at)


@dataclass(frozen=True, slots=True)
class _Interval:
    """Where a number may lie."""

    low: float = -inf
    high: float = inf
    low_open: bool = False
    high_open: bool = False

    @property
    def is_empty(self) -> bool:
        return self.low > self.high or (self.low == self.high and (self.low_open or self.high_open))

    def cut(self, limit: Limit) -> "_Interval":
        """The part of it where the limit holds. `!=` cuts nothing that matters here."""
        x, now = limit.number, self
        if limit.symbol in {">", ">=", "=="} and x >= now.low:
            is_open = limit.symbol == ">" or (x == now.low and now.low_open)
            now = replace(now, low=x, low_open=is_open)
        if limit.symbol in {"<", "<=", "=="} and x <= now.high:
            is_open = limit.symbol == "<" or (x == now.high and now.high_open)
            now = replace(now, high=x, high_open=is_open)
        if limit.symbol == "==" and not self.low <= x <= self.high:
            return _Interval(inf, -inf)
        return now

    def holds(self, other: "_Interval") -> bool:
        """Whether it is a limit at all and `other` lies inside it."""
        low = other.low > self.low or (other.low == self.low and self.low_open <= other.low_open)
        high = other.high < self.high or (other.high == self.high and self.high_open <= other.high_open)
        return low and high and self != _Interval()


def _counts_fewer(one: Quantity, other: Quantity) -> bool:
    """Whether `one` counts, of the same scores, only those that `other` counts too: count(s > 0.9) and count(s > 0.7)."""
    if not (isinstance(one, Call) and isinstance(other, Call)):
        return False
    if (one.function, one.series, one.window, one.need) != (
        other.function,
        other.series,
        other.window,
        other.need,
    ):
        return False
    if not (isinstance(one.over, Test) and isinstance(other.over, Test)):
        return False
    (strict, *more), (loose, *rest) = one.over.bounds, other.over.bounds
    if more or rest or not {strict[0], loose[0]} <= {">", ">="}:
        return False
    return strict[1] > loose[1] or (strict[1] == loose[1] and (strict[0] == loose[0] or loose[0] == ">="))
