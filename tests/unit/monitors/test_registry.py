"""Every registered kind keeps its promises to the bank and to artifacts."""

import pytest
import torch

from monitors.aggregate import AggregatorSpec
from monitors.base import Monitor
from monitors.registry import MONITORS
from monitors.types import HookPoint

TENSORS = {
    "linear": {"weight": torch.ones(1, 4), "bias": torch.ones(1)},
    "direction": {"direction": torch.ones(4)},
    "sae_feature": {
        "encoder": torch.ones(4),
        "decoder": torch.ones(4),
        "scalars": torch.tensor([0.1, 0.2, 1.0, 0.0]),
    },
    "sae_features": {
        "weight": torch.ones(2),
        "bias": torch.ones(2),
        "encoder": torch.ones(2, 4),
        "offsets": torch.ones(4, 2),
        "decoder": torch.ones(2, 4),
    },
    "polynomial": {
        "projections": torch.ones(5, 4),
        "offsets": torch.ones(5),
        "coefficients": torch.ones(2, 2),
    },
    "delta": {"weight": torch.ones(1, 4), "bias": torch.ones(1)},
    "condition": {"direction": torch.ones(4)},
    "condition_mean": {"direction": torch.ones(4)},
    "novelty": {
        "mean": torch.ones(4),
        "std": torch.ones(4),
        "basis": torch.eye(4)[:2],
        "variance": torch.ones(2),
        "residual_variance": torch.ones(1),
    },
    "mlp": {
        "front.0.weight": torch.ones(3, 4),
        "front.0.bias": torch.ones(3),
        "weight": torch.ones(3),
        "bias": torch.ones(1),
    },
}
HEADS = {"value": torch.ones(2, 3), "value_bias": torch.ones(2)}
FRONT = {"front.0.weight": torch.ones(3, 4), "front.0.bias": torch.ones(3)}
TENSORS |= {"attention": {**FRONT, "query": torch.ones(2, 3), **HEADS}, "multimax": {**FRONT, **HEADS}}
PARAMS = {
    "condition": {"sign": -1},
    "condition_mean": {"sign": 1},
    "sae_features": {"combine": "sum", "squash": "none", "scale": "none", "features": "3 5"},
    "sae_feature": {"scale": "none", "feature": 3},
}


@pytest.mark.parametrize("kind", MONITORS)
def test_a_kind_restores_what_it_says(kind):
    params = PARAMS.get(kind, {})
    transform = MONITORS[kind].restore((HookPoint(2),), TENSORS[kind], params)
    assert transform.kind == kind
    assert transform.params == params
    assert transform.tensors.keys() == TENSORS[kind].keys()
    assert all(torch.equal(tensor, TENSORS[kind][name]) for name, tensor in transform.tensors.items())
    aggregator = "mean" if "mean" in transform.aggregators else min(transform.aggregators)
    monitor = Monitor("x", transform, AggregatorSpec(aggregator))
    assert (monitor.hook_points, monitor.d_model) == ((HookPoint(2),), 4)


@pytest.mark.parametrize("kind", MONITORS)
def test_a_kind_refuses_other_tensors(kind):
    with pytest.raises(ValueError, match="needs exactly"):
        MONITORS[kind].restore((HookPoint(2),), {"other": torch.ones(4)}, PARAMS.get(kind, {}))


@pytest.mark.parametrize("kind", sorted(MONITORS.keys() - {"linear", "delta"}))
def test_a_kind_of_one_hook_point_refuses_two(kind):
    with pytest.raises(ValueError, match="one hook point"):
        MONITORS[kind].restore((HookPoint(1), HookPoint(2)), TENSORS[kind], PARAMS.get(kind, {}))


def test_an_unknown_scale():
    with pytest.raises(ValueError, match="param 'scale' is 'cube'; known: none, unit, sqrt_d, layer_norm"):
        MONITORS["sae_feature"].restore((HookPoint(1),), TENSORS["sae_feature"], {"scale": "cube"})
