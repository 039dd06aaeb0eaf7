"""Artifacts to save, load and spoil."""

import json

import torch
from safetensors.torch import save_file

from monitors.aggregate import AggregatorSpec
from monitors.artifacts import ModelIdentity, SaeReference, save_monitor, save_vector
from monitors.attention import Attention, MultiMax
from monitors.base import Calibration, Evidence, Link, Monitor, Rectifier, Scale, Threshold
from monitors.condition import Condition, MeanCondition
from monitors.direction import Cosine
from monitors.front import Front
from monitors.linear import Linear
from monitors.mlp import Mlp
from monitors.novelty import Novelty
from monitors.polynomial import Polynomial
from monitors.sae_feature import SaeFeature
from monitors.sae_features import Combine, SaeFeatures
from monitors.steering import Direction, SteeringVector
from monitors.types import CausalVerdict, HookKind, HookPoint

D = 6
PRINT = "f" * 64
MODEL = ModelIdentity(PRINT, D, num_layers=3)
P0, P1 = HookPoint(0), HookPoint(1, HookKind.RESID_PRE)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sae_feature(**changes):
    usual = {"hook_point": P1, "feature": 12, "encoder": randn(D), "bias": 0.25, "decoder": randn(D, seed=1)}
    return SaeFeature(
        **(usual | {"scale": Scale.LAYER_NORM, "rectifier": Rectifier(0.5, 1.5, 0.125)} | changes)
    )


TRANSFORMS = {
    "linear": Linear((P0,), randn(1, D), torch.tensor([0.5])),
    "multi_layer": Linear((P0, P1), randn(2, D), torch.tensor([0.5])),
    "direction": Cosine(P1, randn(D)),
    "sae_feature": sae_feature(),
    "sae_features": SaeFeatures(
        P1,
        (3, 9),
        randn(2),
        randn(2),
        randn(2, D),
        randn(4, 2),
        randn(2, D),
        Scale.LAYER_NORM,
        combine=Combine.MAX,
    ),
    "polynomial": Polynomial(P1, randn(5, D), randn(5), randn(2, 2)),
    "condition": Condition(P1, randn(D), -1),
    "condition_mean": MeanCondition(P1, randn(D)),
    "novelty": Novelty(P1, randn(D), torch.ones(D), torch.eye(D)[:2], torch.ones(2), torch.ones(1)),
    "mlp": Mlp(P1, Front((randn(4, D),), (randn(4),)), randn(4), randn(1)),
    "attention": Attention(P1, randn(2, D), randn(2, D, seed=1), randn(2)),
    "attention_front": Attention(P1, randn(2, 3), randn(2, 3), randn(2), Front((randn(3, D),), (randn(3),))),
    "multimax": MultiMax(P0, randn(2, D), randn(2)),
}


def full_monitor(name, transform):
    run, train = AggregatorSpec("ema", alpha=0.5), AggregatorSpec("rolling_mean", window=8)
    if transform.aggregators <= {"mean", "last"}:
        run, train = AggregatorSpec("mean"), AggregatorSpec("last")
    elif run.kind not in transform.aggregators:
        run, train = AggregatorSpec("rolling_attention", window=10), AggregatorSpec("attention")
    return Monitor(
        name,
        transform,
        run,
        Link.SIGMOID,
        exclude_first=1,
        version="3",
        trained_with=train,
        calibration=Calibration(5000, 0.95, (Threshold("response", 0.001, 0.97, certified=True),), "d" * 64),
        evidence=Evidence(auroc=0.99, baseline_auroc=0.8, verdict=CausalVerdict.READOUT, card="card.json"),
    )


VECTORS = {
    "add": SteeringVector(
        "add", "add", (Direction(P0, randn(D)), Direction(P1, randn(D, seed=1))), 0.2, 4.5, "2"
    ),
    "ablate": SteeringVector("ablate", "ablate", (Direction(P0, randn(D)),)),
    "affine": SteeringVector(
        "affine", "affine", (Direction(P0, randn(D), offset=-0.5, gap=2.0),), norm="preserve"
    ),
    "cosine_gated": SteeringVector("gated", "cosine_gated", (Direction(P0, randn(D), tau=0.25),)),
    "sae_clamp": SteeringVector("sae_clamp", "sae_clamp", (sae_feature().direction,)),
}


def save_linear(root, name="harm", transform=TRANSFORMS["linear"]):
    save_monitor(full_monitor(name, transform), root / name, fingerprint=PRINT)
    return root / name


def save_push(root, name="push"):
    vector = SteeringVector(name, "add", (Direction(P0, randn(D)),))
    save_vector(vector, root / name, fingerprint=PRINT)
    return root / name


def write_sae(root, **changes):
    """A SAELens folder of 20 features at blocks.1.hook_resid_pre."""
    folder = root / "saes" / "tiny"
    folder.mkdir(parents=True)
    cfg = {"architecture": "standard", "d_in": D, "d_sae": 20, "metadata": {"hook_name": str(P1)}}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    tensors = {"W_enc": randn(D, 20), "W_dec": randn(20, D), "b_enc": randn(20), "b_dec": randn(D)}
    save_file(tensors | changes, folder / "sae_weights.safetensors")
    return SaeReference(format="saelens", path="saes/tiny", feature=7)
