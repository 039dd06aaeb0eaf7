"""Edits of the residual stream along a monitor's direction, and the null edits that they are compared with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from scipy.stats import rankdata
from torch import Tensor

from monitors.lab.statistics import Floats, Ints
from monitors.types import HookPoint

Edit = Callable[[HookPoint, Tensor, Tensor], Tensor]
"""(hook point, rows x [n, d] float32, owner [n] int64: which example each is of) -> x' [n, d]."""

_STILL = 1e-9  # a norm of nothing but rounding

Writes = Mapping[HookPoint, Tensor]
"""Unit vectors [d] by hook point."""


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """A monitor's direction at one hook point, with the mean projection of each class on it."""

    point: HookPoint
    unit: Tensor  # vh, [d_model] float32
    low: float  # mu- . vh
    high: float  # mu+ . vh

    @property
    def gap(self) -> float:
        return self.high - self.low


Axes = tuple[Axis, ...]
"""One per hook point that the monitor reads."""


def axes_of(units: Mapping[HookPoint, Tensor], rows: Mapping[HookPoint, Tensor], labels: Ints) -> Axes:
    """The class means along unit vectors. rows: pooled, [n, d_model] by hook point; labels: [n]."""
    positive = torch.tensor(labels == 1)
    found = []
    for point, unit in units.items():
        projections = rows[point] @ unit
        low, high = float(projections[~positive].mean()), float(projections[positive].mean())
        found.append(Axis(point, unit, low, high))
    return tuple(found)


def to_low(axes: Axes) -> Edit:
    """Necessity: x + (mu- . vh - x . vh) vh (ACE at 0, 2411.09003)."""
    return _setting(axes, high=False, writes={axis.point: axis.unit for axis in axes})


def to_high(axes: Axes) -> Edit:
    """Sufficiency: x + (mu+ . vh - x . vh) vh (ACE at 1)."""
    return _setting(axes, high=True, writes={axis.point: axis.unit for axis in axes})


def null(axes: Axes, writes: Writes, *, high: bool, scale: float = 1.0) -> Edit:
    """The same change written in another direction: equal ||dx|| for each row if scale is 1; -vh is the wrong sign."""
    return _setting(axes, high=high, writes={point: scale * unit for point, unit in writes.items()})


def push(axes: Axes, dose: float) -> Edit:
    """x + dose * gap * vh."""
    steps = {axis.point: dose * axis.gap * axis.unit for axis in axes}
    return lambda point, x, owner: x + steps[point].to(x)


def patch(axes: Axes, donors: Mapping[HookPoint, Tensor], *, whole: bool) -> Edit:
    """Take from another run its projection on vh, or with `whole` its full row. donors: [num_examples, d] by hook point."""
    units = {axis.point: axis.unit for axis in axes}

    def edit(point: HookPoint, x: Tensor, owner: Tensor) -> Tensor:
        donor = donors[point].to(x)[owner]
        if whole:
            return donor
        unit = units[point].to(x)
        return x + ((donor - x) @ unit)[:, None] * unit

    return edit


def _setting(axes: Axes, *, high: bool, writes: Writes) -> Edit:
    by_point = {axis.point: axis for axis in axes}

    def edit(point: HookPoint, x: Tensor, owner: Tensor) -> Tensor:
        axis = by_point[point]
        target = axis.high if high else axis.low
        return x + (target - x @ axis.unit.to(x))[:, None] * writes[point].to(x)

    return edit


def wrong_sign(axes: Axes) -> Writes:
    return {axis.point: -axis.unit for axis in axes}


def random_writes(rows: Mapping[HookPoint, Tensor], labels: Ints, num: int, seed: int) -> list[Writes]:
    """Directions of the activations' natural variation: drawn from the covariance within the classes.

    rows: pooled, [num_examples, d] by hook point. Isotropic directions would leave the distribution and do less; the
    difference of the classes is left out, because it is what is tested.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(num, len(labels), generator=generator, dtype=torch.float64)
    drawn: list[dict[HookPoint, Tensor]] = [{} for _ in range(num)]
    for point, its in rows.items():
        directions = weights @ _within_classes(its, labels)
        # Where nothing varies (identical prompts) any direction is as natural as another.
        still = torch.linalg.vector_norm(directions, dim=1) < _STILL
        directions[still] = torch.randn(
            int(still.sum()), directions.shape[1], generator=generator, dtype=torch.float64
        )
        units = directions / torch.linalg.vector_norm(directions, dim=1, keepdim=True)
        for number in range(num):
            drawn[number][point] = units[number].float()
    return list(drawn)


def concept_writes(scores: Floats, rows: Mapping[HookPoint, Tensor], labels: Ints) -> Writes | None:
    """Where a score of another concept varies: the covariance of its ranks with the rows, within the classes.

    scores: [num_examples]; rows: as in `random_writes`. None if the score, or the rows with it, do not vary, or a score is NaN.
    """
    weights = _within_classes(torch.tensor(rankdata(scores))[:, None], labels)[:, 0]
    found = {point: weights @ _within_classes(its, labels) for point, its in rows.items()}
    norms = {point: torch.linalg.vector_norm(direction) for point, direction in found.items()}
    if not all(norm >= _STILL for norm in norms.values()):  # NaN, too, is no direction
        return None
    return {point: (direction / norms[point]).float() for point, direction in found.items()}


def _within_classes(rows: Tensor, labels: Ints) -> Tensor:
    """Rows less the mean of their class: [num_examples, d] float64."""
    centred, label = rows.double().clone(), torch.tensor(labels)
    for one in (0, 1):
        centred[label == one] -= centred[label == one].mean(dim=0)
    return centred
