"""What a condition is: a typed tree of comparisons between running numbers. `parser` makes it, `conditions` runs it.

`at` is where a node stands in the text; it does not count for equality, so that equal calls can be shared.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import assert_never

from guard.functions import FUNCTIONS
from guard.types import Scope

SCALARS = ("tokens", "turn")
"""Functions without an argument: response tokens judged so far, and user messages in the request."""

_MIRRORED = {">": "<", ">=": "<=", "<": ">", "<=": ">="}


@dataclass(frozen=True, slots=True)
class Series:
    """One monitor's score at each token of one scope."""

    scope: Scope
    monitor: str
    at: int = field(compare=False, default=0)

    def __str__(self) -> str:
        return f"{self.scope}.{self.monitor}"


@dataclass(frozen=True, slots=True)
class Test:
    """True or false at each token: its score compared with numbers. All bounds must hold."""

    series: Series
    bounds: tuple[tuple[str, float], ...]  # (operator, number), the score on the left
    at: int = field(compare=False, default=0)

    def __str__(self) -> str:
        if len(self.bounds) == 1:
            return f"{self.series} {self.bounds[0][0]} {number_text(self.bounds[0][1])}"
        (low_op, low), (high_op, high) = self.bounds
        return f"{number_text(low)} {mirrored(low_op)} {self.series} {high_op} {number_text(high)}"


@dataclass(frozen=True, slots=True)
class Number:
    value: float
    at: int = field(compare=False, default=0)

    def __str__(self) -> str:
        return number_text(self.value)


@dataclass(frozen=True, slots=True)
class Call:
    """A function over a series or a test: one running number. Calls are equal if their texts are."""

    text: str  # in one canonical spelling
    function: str = field(compare=False)
    over: Series | Test = field(compare=False)
    series: Series = field(compare=False)
    window: int = field(compare=False)  # tokens; 0: all tokens so far
    need: int = field(compare=False)  # tokens before it is known
    at: int = field(compare=False, default=0)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number that needs no monitor: `tokens()` or `turn()`."""

    name: str  # one of SCALARS
    at: int = field(compare=False, default=0)

    @property
    def text(self) -> str:
        return f"{self.name}()"

    def __str__(self) -> str:
        return self.text


def make_call(
    function: str, over: Series | Test, window: int = 0, need: int | None = None, at: int = 0
) -> Call:
    """A call with its text. `need` None: what the function waits for by default."""
    default = window if window and FUNCTIONS[function].waits else 1
    need = need or default
    options = (f", window={window}" if window else "") + (f", min={need}" if need != default else "")
    series = over if isinstance(over, Series) else over.series
    return Call(f"{function}({over}{options})", function, over, series, window, need, at)


@dataclass(frozen=True, slots=True)
class Comparison:
    """`first op value op value ...`: true if every neighbouring pair compares."""

    first: "Value"
    rest: tuple[tuple[str, "Value"], ...]
    at: int = field(compare=False, default=0)


@dataclass(frozen=True, slots=True)
class Exceeds:
    """Whether a series was above the threshold that keeps a false-positive budget."""

    series: Series
    fpr: float
    threshold: float | None = (
        None  # from the monitor's calibration; None: not known, so neither is the condition
    )
    at: int = field(compare=False, default=0)
    fpr_at: int = field(compare=False, default=0)

    @property
    def call(self) -> Call:
        """The calibrated statistic."""
        return make_call("max", self.series, at=self.at)

    @property
    def comparison(self) -> Comparison | None:
        """The same, once its threshold is known."""
        if self.threshold is None:
            return None
        return Comparison(self.call, ((">", Number(self.threshold, self.fpr_at)),), self.at)

    def __str__(self) -> str:
        return f"exceeds({self.series}, fpr={number_text(self.fpr)})"


@dataclass(frozen=True, slots=True)
class Not:
    operand: "Condition"
    at: int = field(compare=False, default=0)


@dataclass(frozen=True, slots=True)
class And:
    operands: tuple["Condition", ...]
    at: int = field(compare=False, default=0)


@dataclass(frozen=True, slots=True)
class Or:
    operands: tuple["Condition", ...]
    at: int = field(compare=False, default=0)


Value = Number | Call | Scalar
Quantity = Call | Scalar
Condition = Comparison | Exceeds | Not | And | Or


def mirrored(symbol: str) -> str:
    """The operator with its sides exchanged: 0.7 < x is x > 0.7."""
    return _MIRRORED.get(symbol, symbol)


def number_text(value: float) -> str:
    """A number as one would write it: 4, not 4.0."""
    return repr(value).removesuffix(".0")


def leaves(condition: Condition) -> Iterator[Comparison | Exceeds]:
    """What `and`, `or` and `not` combine, from left to right."""
    match condition:
        case Comparison() | Exceeds():
            yield condition
        case Not():
            yield from leaves(condition.operand)
        case And() | Or():
            for operand in condition.operands:
                yield from leaves(operand)
        case _:
            assert_never(condition)


def comparisons(condition: Condition) -> Iterator[Comparison]:
    """Every comparison of a condition, from left to right; `exceeds` is one once its threshold is known."""
    for leaf in leaves(condition):
        comparison = leaf.comparison if isinstance(leaf, Exceeds) else leaf
        if comparison is not None:
            yield comparison


def budgets(condition: Condition) -> tuple[Exceeds, ...]:
    """Every `exceeds` of a condition, from left to right."""
    return tuple(leaf for leaf in leaves(condition) if isinstance(leaf, Exceeds))


def quantities(condition: Condition) -> tuple[Quantity, ...]:
    """Every distinct running number of a condition, from left to right."""
    values: list[Value] = []
    for leaf in leaves(condition):
        values += [leaf.call] if isinstance(leaf, Exceeds) else [leaf.first, *(v for _, v in leaf.rest)]
    return tuple(dict.fromkeys(value for value in values if not isinstance(value, Number)))


def calls(condition: Condition) -> tuple[Call, ...]:
    """Every distinct call of a condition, from left to right."""
    return tuple(quantity for quantity in quantities(condition) if isinstance(quantity, Call))


def bound(condition: Condition, threshold_of: Callable[[Exceeds], float | None]) -> Condition:
    """The condition with the threshold of each `exceeds`; None leaves it as it is."""
    match condition:
        case Comparison():
            return condition
        case Exceeds():
            threshold = threshold_of(condition)
            return condition if threshold is None else replace(condition, threshold=threshold)
        case Not():
            return replace(condition, operand=bound(condition.operand, threshold_of))
        case And() | Or():
            operands = tuple(bound(operand, threshold_of) for operand in condition.operands)
            return replace(condition, operands=operands)
        case _:
            assert_never(condition)
