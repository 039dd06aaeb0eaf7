"""Cosine similarity with a direction: z = x . v / (||x|| ||v||), in [-1, 1]. A row of zeros has none and gives NaN."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from monitors.base import Column, Params, Scale, Transform, expect_tensors, only_hook_point
from monitors.types import HookPoint


@dataclass(frozen=True, slots=True, eq=False)
class Cosine(Transform):
    """How much the residual stream points along a direction, whatever its norm."""

    kind: ClassVar[str] = "direction"
    hook_point: HookPoint
    direction: Tensor  # [d_model] float32, of any norm but 0

    def __post_init__(self) -> None:
        if not self.direction.any():
            raise ValueError("the direction is all zeros")

    @property
    def columns(self) -> tuple[Column, ...]:
        unit = self.direction / self.direction.norm()
        return (Column(self.hook_point, unit, scale=Scale.UNIT),)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {"direction": self.direction}

    @classmethod
    def restore(cls, hook_points: Sequence[HookPoint], tensors: Mapping[str, Tensor], params: Params) -> Self:
        expect_tensors(tensors, {"direction": ("d_model",)})
        return cls(only_hook_point(hook_points, "a direction"), tensors["direction"])
