"""Steering: what is added to rows of the residual stream, and the limits on it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from monitors.base import Column, row_norm
from monitors.types import CausalVerdict, HookPoint

MAX_NORM_RATIO = 0.3  # largest ||dx|| / ||x||; published ranges are .15 to .3 (science, section 3)

_ROUNDING = 1e-6  # of float32, relative to a row's norm


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """What a steering vector does at one hook point."""

    hook_point: HookPoint
    vector: Tensor  # [d_model] float32; for SAE operations the feature's decoder row
    encoder: Column | None = None  # SAE operations: reads the feature's activation at the same point
    offset: float | None = None  # affine: mu- . vh, where rows of the class without the behaviour lie
    gap: float | None = None  # affine: (mu+ - mu-) . vh
    tau: float = 0.0  # cosine_gated: rows with |cos(x, v)| up to this are left alone

    @property
    def unit(self) -> Tensor:
        """vh = v / ||v||, [d_model]."""
        unit: Tensor = self.vector / torch.linalg.vector_norm(self.vector)
        return unit

    def to(self, device: torch.device) -> Self:
        encoder = self.encoder and self.encoder.to(device)
        return replace(self, vector=self.vector.to(device), encoder=encoder)


Operation = Callable[[Tensor, Direction, Tensor], Tensor]
"""(x [n, d] float32, direction, strength [n, 1]) -> the change of x, [n, d]. Pure; each row depends on itself only."""


def add(x: Tensor, direction: Direction, strength: Tensor) -> Tensor:
    """x + strength * v (activation addition, CAA)."""
    return strength * direction.vector


def ablate(x: Tensor, direction: Direction, strength: Tensor) -> Tensor:
    """x - strength * (x . v / v . v) v; strength 1 removes the direction (2406.11717)."""
    v = direction.vector
    return -strength * (x * v).sum(dim=1, keepdim=True) / (v * v).sum() * v


def affine(x: Tensor, direction: Direction, strength: Tensor) -> Tensor:
    """x - proj_v(x) + proj_v(mu-) + strength * (mu+ - mu-) along v: 0 is the mean of one class, 1 of the other (ACE, 2411.09003)."""
    if direction.offset is None or direction.gap is None:
        raise ValueError(f"{direction.hook_point}: affine needs the offset and the gap of the classes")
    projection = (x * direction.unit).sum(dim=1, keepdim=True)
    return (direction.offset + strength * direction.gap - projection) * direction.unit


def cosine_gated(x: Tensor, direction: Direction, strength: Tensor) -> Tensor:
    """x + strength * vh * max(0, |cos(x, vh)| - tau): rows that have nothing to do with v are left alone."""
    cosine = (x * direction.unit).sum(dim=1, keepdim=True) / row_norm(x)
    return strength * (cosine.abs() - direction.tau).clamp(min=0.0) * direction.unit


def sae_clamp(x: Tensor, direction: Direction, strength: Tensor) -> Tensor:
    """Set the feature's activation to `strength`, by decoder delta: the SAE's error term stays as it is."""
    return _decoder_delta(x, direction, lambda a: strength - a)


def sae_scale(x: Tensor, direction: Direction, strength: Tensor) -> Tensor:
    """Multiply the feature's activation by `strength`; 0 removes the feature."""
    return _decoder_delta(x, direction, lambda a: strength * a - a)


def sae_cap(x: Tensor, direction: Direction, strength: Tensor) -> Tensor:
    """Let the feature's activation be at most `strength`; where it is lower, nothing changes."""
    return _decoder_delta(x, direction, lambda a: torch.minimum(a, strength) - a)


def _decoder_delta(x: Tensor, direction: Direction, change: Callable[[Tensor], Tensor]) -> Tensor:
    """(a' - a) * g * W_dec[j], which equals splicing the edited reconstruction plus its error (science 2.4)."""
    if direction.encoder is None:
        raise ValueError(f"{direction.hook_point}: an SAE operation needs the feature's encoder row")
    activation = direction.encoder.evaluate(x)[:, None]
    return change(activation) * direction.encoder.scale.inverse(x) * direction.vector


OPERATIONS: Mapping[str, Operation] = {
    "add": add,
    "ablate": ablate,
    "affine": affine,
    "cosine_gated": cosine_gated,
    "sae_clamp": sae_clamp,
    "sae_scale": sae_scale,
    "sae_cap": sae_cap,
}


Norm = Literal["none", "preserve"]
"""preserve: x' is turned towards the edited row, and keeps the length of x."""

_REMOVING = frozenset({"ablate", "sae_cap"})
"""Operations that take a direction away. All others write it."""


@dataclass(frozen=True, slots=True, eq=False)
class SteeringVector:
    """A named edit of the residual stream at one or more hook points."""

    name: str
    operation: str  # a key of OPERATIONS
    directions: tuple[Direction, ...]  # one per hook point
    max_norm_ratio: float = MAX_NORM_RATIO  # at each hook point: ||dx|| <= max_norm_ratio * ||x||
    gap: float | None = None  # distance of the class means along the direction, to read a strength against
    version: str = "0"
    verdict: CausalVerdict | None = None  # None: not tested
    norm: Norm = "none"

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            known = ", ".join(OPERATIONS)
            raise ValueError(
                f"steering vector {self.name!r}: unknown operation {self.operation!r}; known: {known}"
            )
        if (
            len({direction.hook_point for direction in self.directions}) != len(self.directions)
            or not self.directions
        ):
            raise ValueError(
                f"steering vector {self.name!r}: needs one or more directions, at different hook points"
            )
        if not all(direction.vector.any() for direction in self.directions):
            raise ValueError(f"steering vector {self.name!r}: a direction is all zeros")
        if not self.max_norm_ratio > 0:
            raise ValueError(
                f"steering vector {self.name!r}: max_norm_ratio is {self.max_norm_ratio}, must be above 0"
            )
        if self.operation.startswith("sae_") and any(
            direction.encoder is None for direction in self.directions
        ):
            raise ValueError(
                f"steering vector {self.name!r}: {self.operation} needs the feature's encoder row"
            )
        if self.operation == "affine" and not all(
            direction.offset is not None and direction.gap for direction in self.directions
        ):
            raise ValueError(
                f"steering vector {self.name!r}: affine needs an offset and a gap other than 0 at each hook point"
            )
        if not all(0 <= direction.tau < 1 for direction in self.directions):
            raise ValueError(f"steering vector {self.name!r}: tau must be at least 0 and below 1")

    @property
    def steerable(self) -> bool | None:
        """Whether the causal test allows steering with this operation. None: not tested."""
        if self.verdict is None:
            return None
        one_way = CausalVerdict.NECESSARY if self.operation in _REMOVING else CausalVerdict.WRITE_HANDLE
        return self.verdict in {CausalVerdict.CAUSAL, one_way}

    def to(self, device: torch.device) -> Self:
        return replace(self, directions=tuple(direction.to(device) for direction in self.directions))


@dataclass(frozen=True, slots=True)
class Edit:
    """An installed vector at a strength, for one request's rows of one forward pass."""

    vector: SteeringVector
    strength: float


def steer(x: Tensor, vector: SteeringVector, direction: Direction, strength: Tensor) -> tuple[Tensor, Tensor]:
    """Apply a vector's operation to rows. x: [n, d], any float dtype; strength: [n, 1] -> (x' of x's dtype, dropped).

    The change is computed in float32 and scaled down to `max_norm_ratio`. A row that would not be finite keeps its old
    value bit for bit; `dropped` (0-d int64, on the device) counts those.
    """
    rows = x.float()
    delta = OPERATIONS[vector.operation](rows, direction, strength)
    if vector.norm == "preserve":
        edited = _turned(rows, rows + delta, vector.max_norm_ratio)
    else:
        limit = vector.max_norm_ratio * row_norm(rows)
        edited = rows + delta * (limit / row_norm(delta)).clamp(max=1.0).nan_to_num(nan=0.0)
    steered = edited.to(x.dtype)
    usable = steered.isfinite().all(dim=1, keepdim=True)
    return torch.where(usable, steered, x), (~usable).sum()


def _turned(x: Tensor, towards: Tensor, max_norm_ratio: float) -> Tensor:
    """x turned to the direction of `towards` at its own length, or less far: ||x' - x|| <= max_norm_ratio * ||x||.

    Scaling x' back after the cap could go beyond it, and capping after scaling would lose the length; an angle keeps both.
    A row that would be reversed exactly has no plane to turn in, and stays.
    """
    unit = x / row_norm(x)
    along = (towards * unit).sum(dim=1, keepdim=True)
    across = towards - along * unit
    height = row_norm(across)
    angle = torch.atan2(height, along).clamp(max=2 * math.asin(min(1.0, max_norm_ratio / 2)))
    turned = row_norm(x) * (angle.cos() * unit + angle.sin() * across / height)
    return torch.where(height <= _ROUNDING * row_norm(towards), x, turned)
