"""Conditions of conditional activation steering (CAST, 2409.05907): s = cos(h, tanh((h . c / c . c) c)).

CAST takes it of the last token of a prompt, or of the mean of its rows: the first is `condition`, aggregated by `last`; the
second is `condition_mean`. The cosine of a mean is not the mean of cosines, so there the row itself is what is averaged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from monitors.base import Params, RowFunction, Transform, expect_tensors, only_hook_point, row_norm
from monitors.types import HookPoint


@dataclass(frozen=True, slots=True, eq=False)
class Condition(Transform):
    """The similarity of each token."""

    kind: ClassVar[str] = "condition"
    hook_point: HookPoint
    direction: Tensor  # [d_model] float32, of any norm but 0
    sign: int = 1  # -1: the condition is met where the similarity is low, so that the score is its opposite

    def __post_init__(self) -> None:
        if not self.direction.any():
            raise ValueError("the condition's direction is all zeros")
        if self.sign not in {-1, 1}:
            raise ValueError(f"param 'sign' is {self.sign}, must be 1 or -1")

    @property
    def functions(self) -> tuple[RowFunction, ...]:
        return (self,)

    @property
    def d_model(self) -> int:
        return len(self.direction)

    def similarity(self, h: Tensor) -> Tensor:
        """With its sign; not finite for a row that is not, or that is all zeros. h: [n, d_model] -> [n]."""
        unit = self.direction.to(h)
        unit = unit / unit.norm()
        projected = torch.tanh((h @ unit)[:, None] * unit)
        scaled = h / h.abs().amax(dim=1, keepdim=True)  # the norm of a huge row would overflow, and make a 0
        cosine = (scaled * projected).sum(dim=1, keepdim=True) / (row_norm(scaled) * row_norm(projected))
        return self.sign * cosine[:, 0]

    def evaluate(self, x: Tensor) -> Tensor:
        """x: [n, d_model] float32 -> [n, 1] float32."""
        return self.similarity(x)[:, None]

    def to(self, device: torch.device) -> Self:
        return replace(self, direction=self.direction.to(device))

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {"direction": self.direction}

    @property
    def params(self) -> Params:
        return {"sign": self.sign}

    @classmethod
    def restore(cls, hook_points: Sequence[HookPoint], tensors: Mapping[str, Tensor], params: Params) -> Self:
        expect_tensors(tensors, {"direction": ("d_model",)})
        sign = params.get("sign")
        if not isinstance(sign, int) or sign not in {-1, 1}:
            raise ValueError(f"param 'sign' is {sign!r}, must be 1 or -1")
        return cls(only_hook_point(hook_points, "a condition"), tensors["direction"], sign)


@dataclass(frozen=True, slots=True, eq=False)
class MeanCondition(Condition):
    """The similarity of the mean row: d_model values per token, which are kept for every token of a cached prefix."""

    kind: ClassVar[str] = "condition_mean"
    aggregators: ClassVar[frozenset[str]] = frozenset({"mean"})

    @property
    def num_values(self) -> int:
        return self.d_model

    def evaluate(self, x: Tensor) -> Tensor:
        """x: [n, d_model] float32 -> the same."""
        return x

    def readout(self, aggregates: Tensor) -> Tensor:
        """aggregates: [n, d_model] float64 -> [n]."""
        return self.similarity(aggregates)
