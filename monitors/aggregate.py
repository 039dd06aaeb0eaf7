"""Aggregators: one running value per monitor from its raw values so far. Host side, streaming, float64.

Each class holds the state of k monitors of one kind. State is O(1) per monitor (O(window) for the rolling ones)
and results do not depend on how the tokens were cut into chunks. Definitions: science, section 1.2.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Aggregator(Protocol):
    """The state of k monitors. `deepcopy` is a snapshot."""

    def update(self, z: Array) -> Array:
        """Running aggregates of the next n tokens. z: [n, k], n >= 1, finite -> [n, k]; z may be overwritten."""
        ...


class Mergeable(Protocol):
    """An aggregator whose state after two pieces of text follows from the states after each."""

    def merge(self, later: Self) -> None:
        """Go on as if the tokens of `later` had followed. `later` is left as it is.

        Not every aggregator can: the maximum of an average that moves across the seam is in neither state.
        """
        ...


class Last:
    """The latest value."""

    def __init__(self, num_monitors: int) -> None:
        pass

    def merge(self, later: Self) -> None:
        pass

    def update(self, z: Array) -> Array:
        return z


class Mean:
    """The mean of all values so far."""

    def __init__(self, num_monitors: int) -> None:
        self._total = np.zeros(num_monitors)
        self._count = 0

    def merge(self, later: Self) -> None:
        self._total = self._total + later._total
        self._count += later._count

    def update(self, z: Array) -> Array:
        z[0] += self._total
        _accumulate(np.add, z)
        self._total = z[-1].copy()
        z /= _counts(self._count, len(z))
        self._count += len(z)
        return z


class Max:
    """The largest value so far."""

    def __init__(self, num_monitors: int) -> None:
        self._max = np.full(num_monitors, -np.inf)

    def merge(self, later: Self) -> None:
        self._max = np.maximum(self._max, later._max)

    def update(self, z: Array) -> Array:
        np.maximum(z[0], self._max, out=z[0])
        _accumulate(np.maximum, z)
        self._max = z[-1].copy()
        return z


class Ema:
    """e_t = alpha * z_t + (1 - alpha) * e_(t-1), with e_0 = 0."""

    def __init__(self, num_monitors: int, alpha: float) -> None:
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha is {alpha}, must be above 0 and at most 1")
        self._alpha = alpha
        self._ema = np.zeros(num_monitors)

    def update(self, z: Array) -> Array:
        z *= self._alpha
        before = self._ema
        for row in z:
            np.add(row, (1 - self._alpha) * before, out=row)
            before = row
        self._ema = z[-1].copy()
        return z


class Softmax:
    """sum_t softmax(z / temperature)_t z_t: a mean in which the larger values weigh more (2506.10805, temperature 5).

    Online, with the largest value so far taken out of the exponents, so that nothing overflows.
    """

    def __init__(self, num_monitors: int, temperature: float) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}, must be above 0")
        self._temperature = temperature
        self._largest = np.full(num_monitors, -np.inf)
        self._weighted = np.zeros(num_monitors)  # sum of exp((z - largest) / temperature) z
        self._weight = np.zeros(num_monitors)  # sum of exp((z - largest) / temperature)

    def merge(self, later: Self) -> None:
        self._add(later._largest, later._weighted, later._weight)

    def update(self, z: Array) -> Array:
        one = np.ones(z.shape[1])
        for row in z:
            self._add(row.copy(), row, one)
            np.divide(self._weighted, self._weight, out=row)
        return z

    def _add(self, largest: Array, weighted: Array, weight: Array) -> None:
        """Sums whose exponents had `largest` taken out."""
        top = np.maximum(self._largest, largest)
        with np.errstate(invalid="ignore"):  # -inf - -inf: nothing was seen on either side
            own = np.nan_to_num(np.exp((self._largest - top) / self._temperature))
            other = np.nan_to_num(np.exp((largest - top) / self._temperature))
        self._weighted = own * self._weighted + other * weighted
        self._weight = own * self._weight + other * weight
        self._largest = top


class RollingMean:
    """The mean of the last `window` values; of those so far, while there are fewer.

    Tokens are cut into blocks of `window`. The window that ends at index i of the current block is the prefix 0..i of
    this block and the suffix i+1.. of the one before. So every sum is of window values: nothing is ever subtracted,
    and a huge value leaves no rounding error behind when it leaves the window.
    """

    def __init__(self, num_monitors: int, window: int) -> None:
        if window < 1:
            raise ValueError(f"window is {window}, must be 1 or more")
        self.window = window
        self.count = 0
        self._block = np.zeros((window, num_monitors))  # values of the current block
        self._prefix = np.zeros(num_monitors)  # their sum
        self._suffix = np.zeros((window + 1, num_monitors))  # [i]: sum of i.. of the block before

    def update(self, z: Array) -> Array:
        start = 0
        while start < len(z):
            index = self.count % self.window
            piece = z[start : start + self.window - index]
            self._update_within_block(piece, index)
            start += len(piece)
        return z

    def _update_within_block(self, z: Array, index: int) -> None:
        end = index + len(z)
        self._block[index:end] = z
        z[0] += self._prefix
        _accumulate(np.add, z)
        self._prefix = z[-1].copy()
        z += self._suffix[index + 1 : end + 1]
        z /= np.minimum(_counts(self.count, len(z)), self.window)
        self.count += len(z)
        if end == self.window:
            self._suffix[:-1] = np.add.accumulate(self._block[::-1], axis=0)[::-1]
            self._prefix = np.zeros_like(self._prefix)


class MaxRollingMean:
    """The largest mean of `window` consecutive values; while there are fewer than that, the mean so far."""

    def __init__(self, num_monitors: int, window: int) -> None:
        self._rolling = RollingMean(num_monitors, window)
        self._max = Max(num_monitors)

    def update(self, z: Array) -> Array:
        num_partial = max(0, self._rolling.window - 1 - self._rolling.count)
        self._rolling.update(z)
        if num_partial < len(z):
            self._max.update(z[num_partial:])
        return z


AGGREGATORS: Mapping[str, Callable[..., Aggregator]] = {
    "last": Last,
    "mean": Mean,
    "max": Max,
    "ema": Ema,
    "softmax": Softmax,
    "rolling_mean": RollingMean,
    "max_rolling_mean": MaxRollingMean,
}


ELEMENTWISE = frozenset(AGGREGATORS)
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
            self.start(1)
        except TypeError as error:
            raise ValueError(f"aggregator {self.kind!r}: wrong parameters: {error}") from error

    def start(self, num_monitors: int) -> Aggregator:
        """The state before the first token."""
        given = {"alpha": self.alpha, "window": self.window, "temperature": self.temperature}
        params = {name: value for name, value in given.items() if value is not None}
        return AGGREGATORS[self.kind](num_monitors, **params)


def _accumulate(ufunc: np.ufunc, z: Array) -> None:
    """Like ufunc.accumulate(z, axis=0, out=z), which is slower for the few, long rows that there are here."""
    for before, row in pairwise(z):
        ufunc(row, before, out=row)


def _counts(before: int, num_tokens: int) -> Array:
    """How many tokens were seen after each of the next ones: [num_tokens, 1]."""
    return np.arange(before + 1.0, before + num_tokens + 1)[:, None]
