"""What a condition cannot ever do, and what a policy probably should not: errors and warnings beyond types."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf

from guard.actions.refusing import Refusing
from guard.alternatives import Limit, alternatives, contradiction, pairs
from guard.budgets import is_certified
from guard.errors import Flaw
from guard.expressions import (
    Call,
    Condition,
    Number,
    Quantity,
    Scalar,
    Series,
    Test,
    calls,
    comparisons,
    mirrored,
    number_text,
)
from guard.functions import FUNCTIONS, Range
from guard.rules import Rule
from guard.types import Mode, MonitorInfo, Scope, Severity


@dataclass(frozen=True, slots=True)
class Known:
    """What the checks know of where a policy will run. None: not known, so not checked."""

    monitors: Mapping[str, MonitorInfo] | None = None
    max_response_tokens: int | None = None


def unreachable(condition: Condition, known: Known) -> Iterator[Flaw]:
    """What no scores can ever make true: errors, because such a rule protects nobody."""
    found = False
    for flaw, verdict in _fixed_comparisons(condition, known):
        if verdict is False:
            found = True
            yield flaw
    yield from _never_known(condition, known)
    if not found:
        yield from _contradictory(condition)


def doubtful(condition: Condition, known: Known) -> Iterator[Flaw]:
    """What holds whatever the scores are, and windows that no response fills: warnings."""
    for flaw, verdict in _fixed_comparisons(condition, known):
        if verdict is True:
            yield flaw
    limit = known.max_response_tokens
    for call in calls(condition):
        if limit is not None and call.series.scope is Scope.RESPONSE and call.need <= limit < call.window:
            message = f"window={call.window:,} is larger than a response, which has at most {limit:,} tokens"
            yield Flaw(call.at, "wide-window", message, f"write a window of at most {limit:,}, or none")


def _never_known(condition: Condition, known: Known) -> Iterator[Flaw]:
    limit = known.max_response_tokens
    for call in calls(condition):
        if limit is not None and call.series.scope is Scope.RESPONSE and call.need > limit:
            message = f"{call} is known from {call.need:,} tokens on, and a response has at most {limit:,}"
            yield Flaw(
                call.at, "unreachable", message, "write a smaller window, or min= for an earlier verdict"
            )


def _contradictory(condition: Condition) -> Iterator[Flaw]:
    every = alternatives(condition)
    impossible = [contradiction(alternative) for alternative in every or ()]
    if impossible and impossible[0] is not None and None not in impossible:
        limit = impossible[0]
        told = f"`{limit.quantity} {limit.symbol} {number_text(limit.number)}`"
        yield Flaw(limit.at, "unreachable", f"the condition is never true: {told} contradicts the rest of it")


def _fixed_comparisons(condition: Condition, known: Known) -> Iterator[tuple[Flaw, bool]]:
    for call in calls(condition):
        if isinstance(call.over, Test):
            series = call.over.series
            for symbol, bound in call.over.bounds:
                yield from _fixed(str(series), _series_range(series, known), symbol, bound, call.over.at)
    for comparison in comparisons(condition):
        for left, symbol, right in pairs(comparison):
            match left, right:
                case Call() | Scalar(), Number(value=bound):
                    yield from _fixed(str(left), _range(left, known), symbol, bound, right.at)
                case Number(value=bound), Call() | Scalar():
                    yield from _fixed(str(right), _range(right, known), mirrored(symbol), bound, left.at)
                case _:
                    pass


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


def _series_range(series: Series, known: Known) -> Range:
    info = known.monitors.get(series.monitor) if known.monitors else None
    if info is None:
        return -inf, inf
    return -inf if info.low is None else info.low, inf if info.high is None else info.high


def _range(quantity: Quantity, known: Known) -> Range:
    limit = known.max_response_tokens or 0
    if isinstance(quantity, Scalar):
        return 0.0, float(limit) if limit and quantity.name == "tokens" else inf
    window = quantity.window
    if limit and quantity.series.scope is Scope.RESPONSE:
        window = min(window or limit, limit)
    return FUNCTIONS[quantity.function].reach(*_series_range(quantity.series, known), window)


def out_of_calibration(rule: Rule, known: Known) -> Iterator[Flaw]:
    """Thresholds of rules that end a response, beyond those whose false-positive rate was measured: warnings."""
    if rule.mode is not Mode.ENFORCE or rule.action.severity < Severity.REPLACE or not known.monitors:
        return
    found = (claim for alternative in alternatives(rule.condition) or () for claim in alternative)
    for claim in dict.fromkeys(found):  # a claim may stand in several alternatives
        match claim:
            case Limit(quantity=Call(function="max") as call, symbol=">" | ">="):
                yield from _beside_budgets(call, claim, known.monitors[call.series.monitor])
            case _:
                pass


def _beside_budgets(call: Call, limit: Limit, info: MonitorInfo) -> Iterator[Flaw]:
    budgets = [b for b in info.budgets if b.scope is call.series.scope and is_certified(info, b)]
    if not budgets:
        return
    loosest = min(budgets, key=lambda budget: budget.threshold)
    strictest = max(budgets, key=lambda budget: budget.threshold)
    number = number_text(limit.number)
    if limit.number < loosest.threshold:
        told = f"below {loosest.threshold:.6g}, so more than {number_text(loosest.fpr)} of benign requests may match"
    elif limit.number > strictest.threshold:
        told = f"above {strictest.threshold:.6g}, which already keeps fpr={number_text(strictest.fpr)}"
    else:
        return
    message = f"{number} lies outside the calibrated thresholds of {call.series}: {told}"
    hint = f"write a budget: exceeds({call.series}, fpr={number_text(strictest.fpr)})"
    yield Flaw(limit.at, "outside-calibration", message, hint)


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
    if rule.match.metadata and rule.mode is Mode.ENFORCE and rule.action.severity >= Severity.STEER:
        message = f"rule '{rule.id}' holds for requests with certain metadata, which is the client's own: it can leave it out"
        yield "match", "client-chosen", message, "narrow the rule by tenants, which follow from the key"
    refusing = rule.action if isinstance(rule.action, Refusing) else None
    if (
        refusing
        and refusing.at_most_delivered is None
        and not rule.holdback
        and rule.reads_response
        and rule.mode is Mode.ENFORCE
    ):
        message = (
            f"rule '{rule.id}' blocks in the response, but what was judged before the block has left by then"
        )
        hint = f"set defaults.holdback, or at_most_delivered in the {refusing.kind}"
        yield "then", "no-holdback", message, hint
