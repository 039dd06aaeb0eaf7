"""Means in which some tokens weigh more: by the exponential of the value itself, or of a logit beside it."""

from typing import Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from monitors.aggregate.base import Array, Sequential
from monitors.aggregate.rolling import ACROSS_THE_SEAM
from monitors.aggregate.simple import Max

_PIECE = 1 << 18  # numbers that a rolling attention has in memory at once: bounds what a long chunk takes


class _WeightedMean:
    """sum_t exp(q_t) v_t / sum_t exp(q_t), of several logits q and values v at once.

    Online, with the largest logit so far taken out of the exponents, so that nothing overflows.
    """

    def __init__(self, num_means: int) -> None:
        self._largest = np.full(num_means, -np.inf)
        self._weighted = np.zeros(num_means)  # sum of exp(q - largest) v
        self._weight = np.zeros(num_means)  # sum of exp(q - largest)

    def merge(self, later: Self) -> None:
        if later._weight.any():  # else it has seen no token
            self._add(later._largest, later._weighted, later._weight)

    def update(self, logits: Array, values: Array) -> Array:
        """Both [n, num_means], finite -> the running means, in place of the values."""
        one = np.ones(values.shape[1])
        for q, v in zip(logits, values, strict=True):
            self._add(q, v, one)
            np.divide(self._weighted, self._weight, out=v)
        return values

    def _add(self, largest: Array, weighted: Array, weight: Array) -> None:
        """Sums whose exponents had `largest`, which is finite, taken out."""
        top = np.maximum(self._largest, largest)
        own, other = np.exp(self._largest - top), np.exp(largest - top)
        self._weighted = own * self._weighted + other * weighted
        self._weight = own * self._weight + other * weight
        self._largest = top


class Softmax:
    """sum_t softmax(z / temperature)_t z_t: a mean in which the larger values weigh more (2506.10805, temperature 5)."""

    def __init__(self, num_monitors: int, temperature: float) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}, must be above 0")
        self._temperature = temperature
        self._mean = _WeightedMean(num_monitors)

    def merge(self, later: Self) -> None:
        self._mean.merge(later._mean)

    def update(self, z: Array) -> Array:
        return self._mean.update(z / self._temperature, z)


class Attention:
    """sum_t softmax(q)_t v_t over all tokens so far, per head (2506.10805).

    Of the k = 2 H values of a token the first H are the logits q of the heads, the others their values v: [n, 2 H] -> [n, H].
    """

    def __init__(self, num_values: int) -> None:
        self._mean = _WeightedMean(_num_heads(num_values))

    def merge(self, later: Self) -> None:
        self._mean.merge(later._mean)

    def update(self, z: Array) -> Array:
        num_heads = z.shape[1] // 2
        return self._mean.update(z[:, :num_heads], z[:, num_heads:])


class RollingAttention(Sequential):
    """The largest attention mean of `window` consecutive tokens, per head (2601.11516, window 10): [n, 2 H] -> [n, H].

    While there are fewer tokens, the attention mean of those so far. As with `MaxRollingMean`, those don't stand in the
    maximum once there is a full window: one token alone is no average.
    """

    why_not = ACROSS_THE_SEAM

    def __init__(self, num_values: int, window: int) -> None:
        if window < 1:
            raise ValueError(f"window is {window}, must be 1 or more")
        self._num_heads = _num_heads(num_values)
        self._window = window
        self._num_partial = window - 1  # windows still to come that are not full
        self._before = np.zeros((window - 1, num_values))  # the last tokens
        self._before[:, : self._num_heads] = -np.inf  # where there was none, it weighs nothing
        self._max = Max(self._num_heads)

    def update(self, z: Array) -> Array:
        rows = max(1, _PIECE // (self._window * z.shape[1]))
        if len(z) <= rows:
            return self._update(z)
        return np.concatenate(
            [self._update(z[start : start + rows]) for start in range(0, len(z), rows)], axis=0
        )

    def _update(self, z: Array) -> Array:
        tokens = np.concatenate([self._before, z])
        self._before = tokens[len(z) :].copy()
        # [n, 2 H, window]; for one token, while decoding, making the general view would take longest
        is_one = len(z) == 1
        windows = tokens.T[None] if is_one else sliding_window_view(tokens, self._window, axis=0)
        q, v = windows[:, : self._num_heads], windows[:, self._num_heads :]
        weights = np.exp(q - q.max(axis=2, keepdims=True))
        means: Array = (weights * v).sum(axis=2) / weights.sum(axis=2)

        if self._num_partial < len(means):
            self._max.update(means[self._num_partial :])
        self._num_partial = max(0, self._num_partial - len(z))
        return means


def _num_heads(num_values: int) -> int:
    if num_values % 2:
        raise ValueError(f"attention needs a logit and a value per head, which {num_values} values are not")
    return num_values // 2
