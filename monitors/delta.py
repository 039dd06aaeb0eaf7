"""How far the residual stream has drifted since the task was given: z_t = sum over layers of w_l . (x_t - x_ref), + b.

TaskTracker (2406.00799): what is read after the user's own request, a document or the result of a tool, should not change
what the model is about to do. The reference is the last token of the first user message.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from monitors.base import Column, Params, Transform, expect_tensors
from monitors.types import HookPoint


@dataclass(frozen=True, slots=True, eq=False)
class Delta(Transform):
    """A linear probe of the difference to the request's reference token, on one or more layers."""

    kind: ClassVar[str] = "delta"
    hook_points: tuple[HookPoint, ...]
    weight: Tensor  # [num_layers, d_model] float32
    bias: Tensor  # [1] float32

    @property
    def columns(self) -> tuple[Column, ...]:
        return tuple(map(Column, self.hook_points, self.weight))

    @property
    def relative_bias(self) -> float:
        return float(self.bias)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {"weight": self.weight, "bias": self.bias}

    @property
    def params(self) -> Params:
        return {}

    @classmethod
    def restore(cls, hook_points: Sequence[HookPoint], tensors: Mapping[str, Tensor], params: Params) -> Self:
        expect_tensors(tensors, {"weight": (len(hook_points), "d_model"), "bias": (1,)})
        return cls(tuple(hook_points), tensors["weight"], tensors["bias"])
