"""The layers that kinds of monitors may share before their own: y = ReLU(B ReLU(A x + a) + b) (2601.11516: 2 layers of 100)."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

_MAX_LAYERS = 2


@dataclass(frozen=True, slots=True, eq=False)
class Front:
    """One or two affine maps, each followed by a ReLU. Standardisation is folded into the first."""

    weights: tuple[Tensor, ...]  # each [width, width before] float32; the first: [width, d_model]
    biases: tuple[Tensor, ...]  # each [width] float32

    def __post_init__(self) -> None:
        if not 1 <= len(self.weights) == len(self.biases) <= _MAX_LAYERS:
            raise ValueError(
                f"a front has one or two layers, each with a weight and a bias, not {len(self.weights)} "
                f"weights and {len(self.biases)} biases"
            )
        if not all(len(weight) for weight in self.weights):
            raise ValueError(
                "a front's layer has no values: whatever the row is, nothing of it would be left"
            )
        for before, after in pairwise(self.weights):
            if after.shape[1] != before.shape[0]:
                raise ValueError(
                    f"a front's layers don't fit: {before.shape[0]} values, then weights for {after.shape[1]}"
                )

    @property
    def d_model(self) -> int:
        return self.weights[0].shape[1]

    @property
    def width(self) -> int:
        """How many values it gives."""
        return self.weights[-1].shape[0]

    def evaluate(self, x: Tensor) -> Tensor:
        """x: [n, d_model] float32 -> [n, width] float32, NaN where a sum is not finite: ReLU alone would make -inf a 0."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            p = F.linear(x, weight, bias)
            x = torch.relu(p) + p * 0.0
        return x

    def to(self, device: torch.device) -> Self:
        return type(self)(
            tuple(weight.to(device) for weight in self.weights),
            tuple(bias.to(device) for bias in self.biases),
        )

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """For `weights.safetensors`: front.0.weight, front.0.bias, front.1.weight, …"""
        layers = enumerate(zip(self.weights, self.biases, strict=True))
        return {
            f"front.{i}.{name}": tensor
            for i, pair in layers
            for name, tensor in zip(("weight", "bias"), pair, strict=True)
        }

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor]) -> Self | None:
        """The reverse; None if there are none of a front. Check the tensors first, by `front_shapes`."""
        layers = range(_num_layers(tensors))
        if not layers:
            return None
        return cls(
            tuple(tensors[f"front.{i}.weight"] for i in layers),
            tuple(tensors[f"front.{i}.bias"] for i in layers),
        )


def front_shapes(tensors: Mapping[str, Tensor]) -> tuple[dict[str, tuple[int | str, ...]], str]:
    """What `expect_tensors` must expect of the front among these tensors, and its name for the width that the front gives.

    Without a front: nothing, and d_model.
    """
    shapes: dict[str, tuple[int | str, ...]] = {}
    before = "d_model"
    for i in range(_num_layers(tensors)):
        width = f"front_{i}"
        shapes |= {f"front.{i}.weight": (width, before), f"front.{i}.bias": (width,)}
        before = width
    return shapes, before


def _num_layers(tensors: Mapping[str, Tensor]) -> int:
    weights = [name for name in tensors if name.startswith("front.") and name.endswith(".weight")]
    return min(len(weights), _MAX_LAYERS)
