"""How far a row lies from the rows of benign text: the Mahalanobis distance, of low rank, for what no example shows.

y = (x - mean) / std per channel,  D^2 = sum_i (y . u_i)^2 / lambda_i + ||y - sum_i (y . u_i) u_i||^2 / sigma^2

The value is sqrt(D^2 / d_model): how many times as far as benign rows are, of which the root mean square is about 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Self

import torch
from torch import Tensor

from monitors.base import Params, RowFunction, Transform, expect_tensors, only_hook_point
from monitors.types import HookPoint


@dataclass(frozen=True, slots=True, eq=False)
class Novelty(Transform):
    """A Gaussian with `rank` directions of their own variance, and one variance for all that is left."""

    kind: ClassVar[str] = "novelty"
    hook_point: HookPoint
    mean: Tensor  # [d_model] float32
    std: Tensor  # [d_model] float32, above 0
    basis: Tensor  # [rank, d_model] float32: u, orthonormal
    variance: Tensor  # [rank] float32, above 0: lambda
    residual_variance: Tensor  # [1] float32, above 0: sigma^2

    def __post_init__(self) -> None:
        for name in ("std", "variance", "residual_variance"):
            if not (getattr(self, name) > 0).all():
                raise ValueError(f"tensor {name!r} must be above 0 everywhere")

    @property
    def functions(self) -> tuple[RowFunction, ...]:
        return (self,)

    @property
    def d_model(self) -> int:
        return len(self.mean)

    def evaluate(self, x: Tensor) -> Tensor:
        """x: [n, d_model] float32 -> [n, 1] float32. The residual is a difference of rows, not of their squared norms."""
        y = (x - self.mean) / self.std
        p = y @ self.basis.T
        residual = y - p @ self.basis
        within = (p * p / self.variance).sum(dim=1, keepdim=True)
        beyond = (residual * residual).sum(dim=1, keepdim=True) / self.residual_variance
        return ((within + beyond) / self.d_model).sqrt()

    def to(self, device: torch.device) -> Self:
        return type(self)(self.hook_point, *(tensor.to(device) for tensor in self.tensors.values()))

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "hook_point"}

    @classmethod
    def restore(cls, hook_points: Sequence[HookPoint], tensors: Mapping[str, Tensor], params: Params) -> Self:
        shapes: Mapping[str, tuple[int | str, ...]] = {
            "mean": ("d_model",),
            "std": ("d_model",),
            "basis": ("rank", "d_model"),
            "variance": ("rank",),
            "residual_variance": (1,),
        }
        expect_tensors(tensors, shapes)
        return cls(only_hook_point(hook_points, "a novelty"), **tensors)
