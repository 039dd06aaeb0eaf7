"""The norm of the residual stream in production, sampled: a change of layer, weights, precision or template shows in it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from monitors.types import HookPoint

SAMPLE_EVERY = 16  # forward passes


@dataclass(frozen=True, slots=True)
class NormSummary:
    """log ||x|| over the sampled rows of a hook point."""

    num_rows: int
    mean: float
    std: float


class NormMeter:
    """Sums over rows, on the device: nothing waits for it until `summary`."""

    def __init__(self, points: Sequence[HookPoint], device: torch.device) -> None:
        self._place = {point: index for index, point in enumerate(points)}
        self._sums = torch.zeros(len(points), 3, dtype=torch.float64, device=device)
        self._num_passes = 0
        self._is_sampled = False

    def begin(self) -> None:
        """A forward pass begins."""
        self._is_sampled = self._num_passes % SAMPLE_EVERY == 0
        self._num_passes += 1

    def read(self, point: HookPoint, rows: Tensor) -> None:
        """rows: [n, d_model], as they are before any edit. A row of zeros, or one that is not finite, is left out."""
        if not self._is_sampled or point not in self._place:
            return
        log_norm = torch.linalg.vector_norm(rows.float(), dim=1).log().double()
        usable = log_norm.isfinite()
        log_norm = log_norm.where(usable, 0.0)
        self._sums[self._place[point]] += torch.stack(
            [usable.sum().double(), log_norm.sum(), (log_norm * log_norm).sum()]
        )

    def summary(self) -> dict[HookPoint, NormSummary]:
        """Of all rows so far. Waits for the device."""
        found = {}
        for (point, _), (count, total, squares) in zip(self._place.items(), self._sums.tolist(), strict=True):
            if count:
                mean = total / count
                found[point] = NormSummary(int(count), mean, math.sqrt(max(0.0, squares / count - mean**2)))
        return found
