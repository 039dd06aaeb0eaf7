"""What whole series rule out: bounds on every running number, computed at once, so that a replay can skip idle rules.

Only ever careful: a rule that is called idle never matches and never fails. The opposite is not promised.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from guard.expressions import (
    And,
    Call,
    Comparison,
    Condition,
    Exceeds,
    Not,
    Number,
    Or,
    Scalar,
    Series,
    Test,
    Value,
)
from guard.functions import FUNCTIONS, Range
from guard.rules import Rule
from guard.types import Phase, Score

Floats = NDArray[np.float64]

_MARGIN = 1e-6  # of the largest score, for rounding: sums of 65,536 numbers are off by 1e-11 of it
_LARGEST = 1e12  # beyond it, sums might overflow: nothing is ruled out
_NEGATED = {">": "<=", ">=": "<", "<": ">=", "<=": ">", "==": "!=", "!=": "=="}
_ELEMENTWISE: dict[str, Callable[[Floats, float], NDArray[np.bool_]]] = {
    ">": np.greater,
    ">=": np.greater_equal,
    "<": np.less,
    "<=": np.less_equal,
    "==": np.equal,
    "!=": np.not_equal,
}


class Bounds:
    """The bounds of one response's series. Each series is looked at once, whatever number of rules read it."""

    def __init__(
        self,
        series: Mapping[Phase, Mapping[str, Sequence[Score]]],
        num_tokens: Mapping[Phase, int],
    ) -> None:
        self._series = series
        self._num_tokens = num_tokens
        self._whole: dict[tuple[Phase, str], Floats | None] = {}
        self._ranges: dict[Call, Range | None] = {}

    def is_idle(self, rule: Rule) -> bool:
        """The rule can neither match nor fail on these series."""
        return self.can_judge(rule) and not self._may_be(rule.condition, wanted=True)

    def can_judge(self, rule: Rule) -> bool:
        """Every score that the rule reads is there, finite and of usual size, so that it cannot fail."""
        return all(self._judged(phase, monitor) is not None for phase, monitor in rule.reads)

    def _judged(self, phase: Phase, monitor: str) -> Floats | None:
        """The scores inside the monitor's scope; None if any is missing, broken or very large."""
        key = (phase, monitor)
        if key not in self._whole:
            self._whole[key] = _clean(self._series[phase].get(monitor), self._num_tokens[phase])
        return self._whole[key]

    def _scores(self, series: Series) -> Floats:
        """All judged scores of a series; a conversation's are the prompt's, then the response's."""
        parts = [self._judged(phase, series.monitor) for phase in series.scope.phases]
        whole = [part for part in parts if part is not None]
        assert len(whole) == len(parts), "is_idle asks can_judge first"  # noqa: S101
        return np.concatenate(whole)

    def _may_be(self, condition: Condition, *, wanted: bool) -> bool:
        """Whether the condition may turn out as wanted, true or false, at some token."""
        match condition:
            case Comparison():
                outcomes = []
                left = condition.first
                for symbol, right in condition.rest:
                    outcomes.append(self._pair_may_be(left, symbol, right, wanted=wanted))
                    left = right
                return all(outcomes) if wanted else any(outcomes)
            case Exceeds():
                comparison = condition.comparison
                return comparison is not None and self._may_be(comparison, wanted=wanted)
            case Not():
                return self._may_be(condition.operand, wanted=not wanted)
            case And():
                parts = (self._may_be(operand, wanted=wanted) for operand in condition.operands)
                return all(parts) if wanted else any(parts)
            case Or():
                parts = (self._may_be(operand, wanted=wanted) for operand in condition.operands)
                return any(parts) if wanted else all(parts)
            case _:
                assert_never(condition)

    def _pair_may_be(self, left: Value, symbol: str, right: Value, *, wanted: bool) -> bool:
        one, other = self._range(left), self._range(right)
        if one is None or other is None:
            return False  # never known, so neither true nor false
        return _may_compare(one, symbol if wanted else _NEGATED[symbol], other)

    def _range(self, value: Value) -> Range | None:
        """Between what the number runs; None: it never becomes known."""
        match value:
            case Number():
                return value.value, value.value
            case Call():
                if value not in self._ranges:
                    self._ranges[value] = _call_range(value, self._scores(value.series))
                return self._ranges[value]
            case Scalar(name="tokens"):
                return 0.0, float(self._num_tokens[Phase.RESPONSE])
            case Scalar():
                return -np.inf, np.inf
            case _:
                assert_never(value)


def _clean(series: Sequence[Score] | None, num_tokens: int) -> Floats | None:
    if series is None or len(series) != num_tokens:
        return None
    judged: Any = [score for score in series if score is not None] if None in series else series
    scores = np.asarray(judged, np.float64)
    # NaN compares false, too
    return scores if not scores.size or bool((np.abs(scores) < _LARGEST).all()) else None


def _may_compare(one: Range, symbol: str, other: Range) -> bool:
    """Whether some number of the one range compares with some number of the other."""
    match symbol:
        case ">":
            return one[1] > other[0]
        case ">=":
            return one[1] >= other[0]
        case "<":
            return one[0] < other[1]
        case "<=":
            return one[0] <= other[1]
        case "==":
            return one[0] <= other[1] and other[0] <= one[1]
        case _:
            return not one[0] == one[1] == other[0] == other[1]


def _call_range(call: Call, scores: Floats) -> Range | None:
    """Between what a call's value runs, from the token on at which it is known. Exact, but for the mean's rounding."""
    if len(scores) < call.need:
        return None
    fed = scores
    if isinstance(call.over, Test):
        fed = np.logical_and.reduce(
            [_ELEMENTWISE[symbol](scores, bound) for symbol, bound in call.over.bounds]
        )
    match call.function:
        case "count":
            return _extent(_rolling_sums(fed, call)[0])
        case "mean" | "frac":
            sums, lengths = _rolling_sums(fed, call)
            low, high = _extent(sums / lengths)
            largest = 1 + float(np.abs(scores).max())
            margin = (_MARGIN + np.finfo(np.float64).eps * len(scores) ** 2) * largest
            return low - margin, high + margin
        case "max" | "min" | "last":
            return _extent(fed)
        case _:
            return _walked(call, fed)


def _rolling_sums(fed: NDArray[Any], call: Call) -> tuple[NDArray[Any], NDArray[Any]]:
    """Of the window that ends at each token, from the first known one on: the sum and the length."""
    sums = np.concatenate(([0], np.cumsum(fed)))
    ends = np.arange(call.need, len(fed) + 1)
    starts = np.maximum(ends - call.window, 0) if call.window else np.zeros_like(ends)
    return sums[ends] - sums[starts], ends - starts


def _walked(call: Call, fed: NDArray[Any]) -> Range:
    """The plain way, for any function: feed it, and watch its value."""
    aggregate = FUNCTIONS[call.function](call.window, call.need)
    values = []
    for x in fed.tolist():
        aggregate.push(x)
        if aggregate.value is not None:
            values.append(aggregate.value)
    return min(values), max(values)


def _extent(values: NDArray[Any]) -> Range:
    return float(values.min()), float(values.max())
