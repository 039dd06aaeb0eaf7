"""The direction of a monitor at each hook point that it reads."""

from collections.abc import Mapping

import torch
from torch import Tensor

from monitors.aggregate import BY_ATTENTION
from monitors.base import Monitor
from monitors.direction import Cosine
from monitors.linear import Linear
from monitors.sae_feature import SaeFeature
from monitors.sae_features import SaeFeatures
from monitors.types import HookPoint


def directions(monitor: Monitor, positives: Mapping[HookPoint, Tensor]) -> dict[HookPoint, Tensor]:
    """Unit vectors [d_model] float32 by hook point.

    A linear probe's weights; an SAE feature's decoder row, which is what writing it would add (of several, the sum by their
    weights); for any other monitor the gradient of its raw values, averaged over positive examples. positives: pooled rows [n, d_model] by hook point.
    Raises ValueError where that is zero.
    """
    transform = monitor.transform
    if isinstance(transform, SaeFeature):
        raw = {transform.hook_point: transform.decoder}
    elif isinstance(transform, SaeFeatures):
        raw = {transform.hook_point: transform.direction}
    elif isinstance(transform, Linear | Cosine):
        raw = {column.hook_point: column.weight for column in transform.columns}
    else:
        raw = _gradients(monitor, positives)
    return {point: _unit(vector, point, monitor.name) for point, vector in raw.items()}


def _gradients(monitor: Monitor, positives: Mapping[HookPoint, Tensor]) -> dict[HookPoint, Tensor]:
    """d(score of a row for itself)/dx, averaged over the rows.

    A monitor that weighs tokens by attention has weights (queries) and values: only the values say what it looks for.
    """
    leaves = {point: positives[point].float().clone().requires_grad_() for point in monitor.hook_points}
    with torch.enable_grad():
        values = monitor.transform.values(leaves)
        if monitor.aggregator.kind in BY_ATTENTION:
            values = values[:, values.shape[1] // 2 :]
        score = monitor.transform.readout(values) if values.shape[1] > 1 else values
        found = torch.autograd.grad(score.sum(), list(leaves.values()), allow_unused=True)
    return {
        point: torch.zeros_like(leaf[0]) if gradient is None else gradient.mean(dim=0)
        for (point, leaf), gradient in zip(leaves.items(), found, strict=True)
    }


def _unit(vector: Tensor, point: HookPoint, name: str) -> Tensor:
    norm = torch.linalg.vector_norm(vector.double())
    if not norm > 0:
        raise ValueError(
            f"monitor {name!r}: its direction at {point} is zero, so there is nothing to write or remove"
        )
    unit: Tensor = (vector.double() / norm).float()
    return unit
