"""Means of the last tokens."""

import numpy as np

from monitors.aggregate.base import Array, Sequential, accumulate, counts
from monitors.aggregate.simple import Max

ACROSS_THE_SEAM = "a window that lies across the seam is in neither"


class RollingMean(Sequential):
    """The mean of the last `window` values; of those so far, while there are fewer.

    Tokens are cut into blocks of `window`. The window that ends at index i of the current block is the prefix 0..i of
    this block and the suffix i+1.. of the one before. So every sum is of window values: nothing is ever subtracted,
    and a huge value leaves no rounding error behind when it leaves the window.
    """

    why_not = ACROSS_THE_SEAM

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
        accumulate(np.add, z)
        self._prefix = z[-1].copy()
        z += self._suffix[index + 1 : end + 1]
        z /= np.minimum(counts(self.count, len(z)), self.window)
        self.count += len(z)
        if end == self.window:
            self._suffix[:-1] = np.add.accumulate(self._block[::-1], axis=0)[::-1]
            self._prefix = np.zeros_like(self._prefix)


class MaxRollingMean(Sequential):
    """The largest mean of `window` consecutive values; while there are fewer than that, the mean so far."""

    why_not = ACROSS_THE_SEAM

    def __init__(self, num_monitors: int, window: int) -> None:
        self._rolling = RollingMean(num_monitors, window)
        self._max = Max(num_monitors)

    def update(self, z: Array) -> Array:
        num_partial = max(0, self._rolling.window - 1 - self._rolling.count)
        self._rolling.update(z)
        if num_partial < len(z):
            self._max.update(z[num_partial:])
        return z
