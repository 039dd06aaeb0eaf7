"""The aggregators by name, and one with its parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from monitors.aggregate.base import Aggregator
from monitors.aggregate.rolling import MaxRollingMean, RollingMean
from monitors.aggregate.simple import Ema, Last, Max, Mean
from monitors.aggregate.weighted import Attention, RollingAttention, Softmax

AGGREGATORS: Mapping[str, Callable[..., Aggregator]] = {
    "last": Last,
    "mean": Mean,
    "max": Max,
    "ema": Ema,
    "softmax": Softmax,
    "rolling_mean": RollingMean,
    "max_rolling_mean": MaxRollingMean,
    "attention": Attention,
    "rolling_attention": RollingAttention,
}

BY_ATTENTION = frozenset({"attention", "rolling_attention"})
"""Those that read half of the values as logits, which say how much the other half weighs."""

ELEMENTWISE = frozenset(AGGREGATORS) - BY_ATTENTION
"""Those that treat each value for itself, so that they fit every monitor whose values are alike."""


@dataclass(frozen=True, slots=True)
class AggregatorSpec:
    """An aggregator by name, with its parameters. A wrong name or parameter is a ValueError."""

    kind: str
    alpha: float | None = None
    window: int | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in AGGREGATORS:
            raise ValueError(f"unknown aggregator {self.kind!r}; known: {', '.join(AGGREGATORS)}")
        try:
            self.start(2)
        except TypeError as error:
            raise ValueError(f"aggregator {self.kind!r}: wrong parameters: {error}") from error

    def start(self, num_values: int) -> Aggregator:
        """The state before the first token, of values that are aggregated side by side."""
        given = {"alpha": self.alpha, "window": self.window, "temperature": self.temperature}
        params = {name: value for name, value in given.items() if value is not None}
        return AGGREGATORS[self.kind](num_values, **params)

    @property
    def unweighted(self) -> Self:
        """What it comes to where all tokens weigh alike: for monitors without attention, to be compared with one."""
        match self.kind:
            case "attention":
                return type(self)("mean")
            case "rolling_attention":
                return type(self)("max_rolling_mean", window=self.window)
            case _:
                return self
