"""Aggregators: one running value per monitor from its raw values so far. Host side, streaming, float64.

Each class holds the state of k monitors of one kind. State is O(1) per monitor (O(window) for the rolling ones)
and results do not depend on how the tokens were cut into chunks. Definitions: science, section 1.2.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Aggregator(Protocol):
    """The state of k monitors. `deepcopy` is a snapshot."""

    def update(self, z: Array) -> None:
        """Replace raw values by running aggregates, in place. z: [n, k], the next n tokens, n >= 1, finite."""
        ...


class Last:
    """The latest value."""

    def __init__(self, num_monitors: int) -> None:
        pass

    def update(self, z: Array) -> None:
        pass


class Mean:
    """The mean of all values so far."""

    def __init__(self, num_monitors: int) -> None:
        self._total = np.zeros(num_monitors)
        self._count = 0

    def update(self, z: Array) -> None:
        z[0] += self._total
        _accumulate(np.add, z)
        self._total = z[-1].copy()
        z /= _counts(self._count, len(z))
        self._count += len(z)


class Max:
    """The largest value so far."""

    def __init__(self, num_monitors: int) -> None:
        self._max = np.full(num_monitors, -np.inf)

    def update(self, z: Array) -> None:
        np.maximum(z[0], self._max, out=z[0])
        _accumulate(np.maximum, z)
        self._max = z[-1].copy()


class Ema:
    """e_t = alpha * z_t + (1 - alpha) * e_(t-1), with e_0 = 0."""

    def __init__(self, num_monitors: int, alpha: float) -> None:
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha is {alpha}, must be above 0 and at most 1")
        self._alpha = alpha
        self._ema = np.zeros(num_monitors)

    def update(self, z: Array) -> None:
        z *= self._alpha
        before = self._ema
        for row in z:
            np.add(row, (1 - self._alpha) * before, out=row)
            before = row
        self._ema = z[-1].copy()


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

    def update(self, z: Array) -> None:
        start = 0
        while start < len(z):
            index = self.count % self.window
            piece = z[start : start + self.window - index]
            self._update_within_block(piece, index)
            start += len(piece)

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

    def update(self, z: Array) -> None:
        num_partial = max(0, self._rolling.window - 1 - self._rolling.count)
        self._rolling.update(z)
        if num_partial < len(z):
            self._max.update(z[num_partial:])


AGGREGATORS: Mapping[str, Callable[..., Aggregator]] = {
    "last": Last,
    "mean": Mean,
    "max": Max,
    "ema": Ema,
    "rolling_mean": RollingMean,
    "max_rolling_mean": MaxRollingMean,
}


@dataclass(frozen=True, slots=True)
class AggregatorSpec:
    """An aggregator by name, with its parameters. A wrong name or parameter is a ValueError."""

    kind: str
    alpha: float | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in AGGREGATORS:
            raise ValueError(f"unknown aggregator {self.kind!r}; known: {', '.join(AGGREGATORS)}")
        try:
            self.start(1)
        except TypeError as error:
            raise ValueError(f"aggregator {self.kind!r}: wrong parameters: {error}") from error

    def start(self, num_monitors: int) -> Aggregator:
        """The state before the first token."""
        given = {"alpha": self.alpha, "window": self.window}
        params = {name: value for name, value in given.items() if value is not None}
        return AGGREGATORS[self.kind](num_monitors, **params)


def _accumulate(ufunc: np.ufunc, z: Array) -> None:
    """Like ufunc.accumulate(z, axis=0, out=z), which is slower for the few, long rows that there are here."""
    for before, row in pairwise(z):
        ufunc(row, before, out=row)


def _counts(before: int, num_tokens: int) -> Array:
    """How many tokens were seen after each of the next ones: [num_tokens, 1]."""
    return np.arange(before + 1.0, before + num_tokens + 1)[:, None]
