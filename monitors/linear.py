"""Linear probes. Logistic regression, mass-mean and LDA are the same at inference: z = sum over layers of w_l . x_l, + b."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from monitors.base import Column, Params, Transform, expect_tensors
from monitors.types import HookPoint


@dataclass(frozen=True, slots=True, eq=False)
class Linear(Transform):
    """A linear probe on one or more layers, with the standardisation of its training folded in (`folded`)."""

    kind: ClassVar[str] = "linear"
    hook_points: tuple[HookPoint, ...]
    weight: Tensor  # [num_layers, d_model] float32
    bias: Tensor  # [1] float32

    @classmethod
    def folded(
        cls, hook_points: Sequence[HookPoint], weight: Tensor, bias: float, mean: Tensor, std: Tensor
    ) -> Self:
        """A probe that was fitted on (x - mean) / std: w' = w / std, b' = b - sum(w' * mean), exact on x itself.

        weight, mean, std: [num_layers, d_model].
        """
        folded = weight.double() / std.double()
        offset = bias - (folded * mean.double()).sum()
        return cls(tuple(hook_points), folded.float(), offset.float().reshape(1))

    @property
    def columns(self) -> tuple[Column, ...]:
        biases = [float(self.bias), *[0.0] * (len(self.hook_points) - 1)]
        return tuple(map(Column, self.hook_points, self.weight, biases))

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {"weight": self.weight, "bias": self.bias}

    @classmethod
    def restore(cls, hook_points: Sequence[HookPoint], tensors: Mapping[str, Tensor], params: Params) -> Self:
        expect_tensors(tensors, {"weight": (len(hook_points), "d_model"), "bias": (1,)})
        return cls(tuple(hook_points), tensors["weight"], tensors["bias"])
