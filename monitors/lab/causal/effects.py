"""Effects in units of the difference between the classes, with their uncertainty.

The unit of resampling is the group, over all prompts at once: numerator and denominator of an effect vary together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from monitors.lab.sections.base import Interval
from monitors.lab.statistics import Floats, Ints

_BOOTSTRAPS = 2000


@dataclass(frozen=True, slots=True, eq=False)
class Paired:
    """Behaviour of the prompts without an edit, and how groups are resampled."""

    base: Floats  # [n]
    labels: Ints  # [n]
    groups: NDArray[np.str_]  # [n]
    seed: int = 0
    _member: NDArray[np.int64] = field(init=False)  # [n]: the group of each, as a number
    _weights: Floats = field(
        init=False
    )  # [1 + draws, num_groups]: how often a draw holds a group; first the data as they are

    def __post_init__(self) -> None:
        names, member = np.unique(self.groups, return_inverse=True)
        rng = np.random.default_rng(self.seed)
        drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=_BOOTSTRAPS)
        object.__setattr__(self, "_member", member)
        object.__setattr__(self, "_weights", np.concatenate([np.ones((1, len(names))), drawn]))

    @property
    def difference(self) -> Interval:
        """B(D+) - B(D-)."""
        return _interval(self._differences())

    @property
    def mean(self) -> Interval:
        """Of all prompts."""
        return _interval(self._means(self.base, np.ones(len(self.base), dtype=np.bool_)))

    def effect(self, change: Floats, rows: NDArray[np.bool_]) -> Interval:
        """Mean of `change` [n] over `rows` [n], divided by B(D+) - B(D-)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return _interval(self._means(change, rows) / self._differences())

    def _differences(self) -> Floats:
        return self._means(self.base, self.labels == 1) - self._means(self.base, self.labels == 0)

    def _means(self, values: Floats, rows: NDArray[np.bool_]) -> Floats:
        """Of the data as they are, then of each bootstrap draw: [1 + draws]; NaN for a draw without such rows."""
        num = self._weights.shape[1]
        sums = np.bincount(self._member, np.where(rows, values, 0.0), minlength=num)
        counts = np.bincount(self._member, rows.astype(np.float64), minlength=num)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((self._weights @ sums) / (self._weights @ counts), dtype=np.float64)


def _interval(draws: Floats) -> Interval:
    """The first is the value, the others say how it varies: 95 %."""
    value, finite = float(draws[0]), draws[1:][np.isfinite(draws[1:])]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (value, value)
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value))


def p_value(effect: float, nulls: Sequence[float]) -> float:
    """(1 + #{|null| >= |effect|}) / (1 + #nulls)."""
    return (1 + sum(abs(null) >= abs(effect) for null in nulls)) / (1 + len(nulls))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given."""
    order = np.argsort(p_values, kind="stable")
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
