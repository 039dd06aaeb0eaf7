"""Truncated polynomial classifiers (2509.26238) of the mean row, or the last:

P(x) = w0 + w1 . x + sum_(k=2..n) sum_(r=1..R) lambda_r^(k) (u_r^(k) . x + c_r^(k))^k

A token's values are the projections, which are affine, so that the mean of them is the projection of the mean row; the powers
are taken of the aggregates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from monitors.base import Params, RowFunction, Transform, expect_tensors, only_hook_point
from monitors.types import HookPoint

MIN_DEGREE, MAX_DEGREE = 2, 5


@dataclass(frozen=True, slots=True, eq=False)
class Polynomial(Transform):
    """The linear part, then `rank` projections of each degree from 2 on, those of a degree side by side."""

    kind: ClassVar[str] = "polynomial"
    aggregators: ClassVar[frozenset[str]] = frozenset({"mean", "last"})
    hook_point: HookPoint
    projections: Tensor  # [1 + (degree - 1) rank, d_model] float32: w1, then u; standardisation is folded in
    offsets: Tensor  # [1 + (degree - 1) rank] float32: w0, then c
    coefficients: Tensor  # [degree - 1, rank] float32: lambda

    def __post_init__(self) -> None:
        if not MIN_DEGREE <= self.degree <= MAX_DEGREE:
            raise ValueError(f"degree is {self.degree}, must be {MIN_DEGREE} to {MAX_DEGREE}")
        if self.num_values != 1 + self.coefficients.numel():
            raise ValueError(
                f"has {self.num_values} projections; needs the linear one and {self.coefficients.numel()}, "
                "one for each coefficient"
            )

    @property
    def degree(self) -> int:
        return len(self.coefficients) + 1

    @property
    def functions(self) -> tuple[RowFunction, ...]:
        return (self,)

    @property
    def num_values(self) -> int:
        return len(self.projections)

    @property
    def d_model(self) -> int:
        return self.projections.shape[1]

    def evaluate(self, x: Tensor) -> Tensor:
        """x: [n, d_model] float32 -> [n, num_values] float32."""
        return F.linear(x, self.projections, self.offsets)

    def readout(self, aggregates: Tensor) -> Tensor:
        """P. A float32 projection to the power of 5 is a finite float64. aggregates: [n, num_values] -> [n]."""
        linear, higher = aggregates[:, 0], aggregates[:, 1:].reshape(-1, *self.coefficients.shape)
        exponents = torch.arange(MIN_DEGREE, self.degree + 1)[:, None].to(higher.device)
        terms = self.coefficients.to(higher) * higher**exponents
        found: Tensor = linear + terms.sum(dim=(1, 2))
        return found

    def to(self, device: torch.device) -> Self:
        names = ("projections", "offsets", "coefficients")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {
            "projections": self.projections,
            "offsets": self.offsets,
            "coefficients": self.coefficients,
        }

    @classmethod
    def restore(cls, hook_points: Sequence[HookPoint], tensors: Mapping[str, Tensor], params: Params) -> Self:
        shapes: Mapping[str, tuple[int | str, ...]] = {
            "projections": ("values", "d_model"),
            "offsets": ("values",),
            "coefficients": ("degree - 1", "rank"),
        }
        expect_tensors(tensors, shapes)
        point = only_hook_point(hook_points, "a polynomial")
        return cls(point, tensors["projections"], tensors["offsets"], tensors["coefficients"])
