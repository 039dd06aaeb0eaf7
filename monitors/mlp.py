"""A small network per token: z = w . ReLU(B ReLU(A x + a) + b) + c, with one or two hidden layers (2601.11516; 2506.10805)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from monitors.base import Params, RowFunction, Transform, expect_tensors, only_hook_point
from monitors.front import Front, front_shapes
from monitors.types import HookPoint

_ONE_LAYER: Mapping[str, tuple[int | str, ...]] = {
    "front.0.weight": ("front_0", "d_model"),
    "front.0.bias": ("front_0",),
}


@dataclass(frozen=True, slots=True, eq=False)
class Mlp(Transform):
    """The hidden layers and a linear probe of what they give. It is its own function of a row."""

    kind: ClassVar[str] = "mlp"
    hook_point: HookPoint
    front: Front
    weight: Tensor  # [width] float32
    bias: Tensor  # [1] float32

    @property
    def functions(self) -> tuple[RowFunction, ...]:
        return (self,)

    @property
    def d_model(self) -> int:
        return self.front.d_model

    def evaluate(self, x: Tensor) -> Tensor:
        """x: [n, d_model] float32 -> [n, 1] float32."""
        return F.linear(self.front.evaluate(x), self.weight[None], self.bias)

    def to(self, device: torch.device) -> Self:
        weight, bias = self.weight.to(device), self.bias.to(device)
        return type(self)(self.hook_point, self.front.to(device), weight, bias)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {**self.front.tensors, "weight": self.weight, "bias": self.bias}

    @classmethod
    def restore(cls, hook_points: Sequence[HookPoint], tensors: Mapping[str, Tensor], params: Params) -> Self:
        shapes, width = front_shapes(tensors)
        expect_tensors(tensors, {**(shapes or _ONE_LAYER), "weight": (width,), "bias": (1,)})
        front = Front.restore(tensors)
        if front is None:
            raise ValueError("an MLP has one hidden layer or two, not none")
        return cls(only_hook_point(hook_points, "an MLP"), front, tensors["weight"], tensors["bias"])
