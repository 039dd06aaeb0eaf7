"""What a condition cannot ever do, and what a policy probably should not: errors and warnings beyond types."""

from collections.abc import Iterator, Mapping
from math import inf

from guard.actions.block import Block
from guard.errors import Flaw
from guard.expressions import (
    Call,
    Comparison,
    Condition,
    Number,
    Series,
    Test,
    Value,
    calls,
    comparisons,
    mirrored,
    number_text,
)
from guard.functions import FUNCTIONS, Range
from guard.rules import Rule
from guard.types import Mode, MonitorInfo

Monitors = Mapping[str, MonitorInfo] | None


def unreachable(condition: Condition, monitors: Monitors) -> Iterator[Flaw]:
    """Comparisons that no score can ever make true: errors, because such a rule protects nobody."""
    for flaw, verdict in _fixed_comparisons(condition, monitors):
        if verdict is False:
            yield flaw


def always_true(condition: Condition, monitors: Monitors) -> Iterator[Flaw]:
    """Comparisons that hold whatever the scores are: warnings."""
    for flaw, verdict in _fixed_comparisons(condition, monitors):
        if verdict is True:
            yield flaw


def _fixed_comparisons(condition: Condition, monitors: Monitors) -> Iterator[tuple[Flaw, bool]]:
    for call in calls(condition):
        if isinstance(call.over, Test):
            series = call.over.series
            for symbol, bound in call.over.bounds:
                yield from _fixed(str(series), _series_range(series, monitors), symbol, bound, call.over.at)
    for comparison in comparisons(condition):
        for left, symbol, right in _pairs(comparison):
            match left, right:
                case Call(), Number(value=bound):
                    yield from _fixed(str(left), _call_range(left, monitors), symbol, bound, right.at)
                case Number(value=bound), Call():
                    yield from _fixed(
                        str(right), _call_range(right, monitors), mirrored(symbol), bound, left.at
                    )
                case _:
                    pass


def _pairs(comparison: Comparison) -> Iterator[tuple[Value, str, Value]]:
    left = comparison.first
    for symbol, right in comparison.rest:
        yield left, symbol, right
        left = right


def _fixed(what: str, between: Range, symbol: str, bound: float, at: int) -> Iterator[tuple[Flaw, bool]]:
    verdict = _verdict(between, symbol, bound)
    if verdict is None:
        return
    low, high = between
    told = f"{what} lies between {number_text(low)} and {number_text(high)}"
    claim = f"`{symbol} {number_text(bound)}` is {'always' if verdict else 'never'} true"
    yield Flaw(at, "always-true" if verdict else "unreachable", f"{claim}: {told}"), verdict


def _verdict(between: Range, symbol: str, bound: float) -> bool | None:
    """Whether a comparison comes out the same for the whole range."""
    low, high = between
    match symbol:
        case ">":
            return False if high <= bound else True if low > bound else None
        case ">=":
            return False if high < bound else True if low >= bound else None
        case "<":
            return False if low >= bound else True if high < bound else None
        case "<=":
            return False if low > bound else True if high <= bound else None
        case _:  # == and !=
            return None if low <= bound <= high else symbol == "!="


def _series_range(series: Series, monitors: Monitors) -> Range:
    info = monitors.get(series.monitor) if monitors else None
    if info is None:
        return -inf, inf
    return -inf if info.low is None else info.low, inf if info.high is None else info.high


def _call_range(call: Call, monitors: Monitors) -> Range:
    return FUNCTIONS[call.function].reach(*_series_range(call.series, monitors), call.window)


def rule_warnings(rule: Rule, tested: frozenset[str]) -> Iterator[tuple[str, str, str, str]]:
    """Doubts about one rule: (key it hangs on, code, message, hint). `tested`: the rules that some test names."""
    if rule.mode is Mode.ENFORCE and rule.id not in tested:
        yield (
            "id",
            "untested",
            f"rule '{rule.id}' is enforced and no test expects it",
            "add a test that makes it match",
        )
    if rule.mode is Mode.OFF and rule.severity == "critical":
        yield "mode", "critical-off", f"rule '{rule.id}' is critical and switched off", "use `mode: shadow`"
    block = rule.action if isinstance(rule.action, Block) else None
    if (
        block
        and block.at_most_delivered is None
        and not rule.holdback
        and rule.reads_response
        and rule.mode is Mode.ENFORCE
    ):
        message = (
            f"rule '{rule.id}' blocks in the response, but what was judged before the block has left by then"
        )
        yield "then", "no-holdback", message, "set defaults.holdback, or at_most_delivered in the block"
