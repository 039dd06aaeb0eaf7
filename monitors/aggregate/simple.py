"""Aggregators of one number of state: the latest, the mean, the largest, the exponential average."""

from typing import Self

import numpy as np

from monitors.aggregate.base import Array, Sequential, accumulate, counts


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
        accumulate(np.add, z)
        self._total = z[-1].copy()
        z /= counts(self._count, len(z))
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
        accumulate(np.maximum, z)
        self._max = z[-1].copy()
        return z


class Ema(Sequential):
    """e_t = alpha * z_t + (1 - alpha) * e_(t-1), with e_0 = 0."""

    why_not = (
        "how much the earlier tokens still weigh depends on how many the later ones are, which is not kept"
    )

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
