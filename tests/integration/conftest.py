"""Tiny engines with monitors on every layer, and the plain forward passes to compare them with."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from monitors.aggregate import AggregatorSpec
from monitors.artifacts import MonitorSet
from monitors.attention import Attention, MultiMax
from monitors.base import Link, Monitor
from monitors.condition import Condition, MeanCondition
from monitors.delta import Delta
from monitors.direction import Cosine
from monitors.front import Front
from monitors.linear import Linear
from monitors.mlp import Mlp
from monitors.novelty import Novelty
from monitors.polynomial import Polynomial
from monitors.sae.base import Among, Selection
from monitors.sae_features import SaeFeatures
from monitors.steering import Direction, SteeringVector
from monitors.types import HookKind, HookPoint
from server.engines.scripted import REHEARSAL
from server.engines.transformers.engine import EngineSettings, TransformersEngine
from server.engines.transformers.model import LoadedModel, prepare
from tests.tiny_models import TINY
from tests.tiny_tokenizer import tiny_tokenizer

_MODELS: dict[str, LoadedModel] = {}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def loaded() -> Callable[[str], LoadedModel]:
    """A tiny model by name, built once per run."""

    def load(name: str) -> LoadedModel:
        if name not in _MODELS:
            _MODELS[name] = prepare(TINY[name](), tiny_tokenizer(), model_id=name)
        return _MODELS[name]

    return load


def monitors_for(loaded: LoadedModel) -> MonitorSet:
    """Random probes: one per layer, one across layers, a cosine, one at a block's input, and one of each other kind; two steering vectors."""
    generator = torch.Generator().manual_seed(7)
    d, num_layers = loaded.blocks.d_model, len(loaded.blocks.layers)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    points = [HookPoint(layer) for layer in range(num_layers)]
    probes = [
        Monitor(
            f"layer{p.layer}", Linear((p,), random(1, d), random(1)), AggregatorSpec("last"), Link.SIGMOID
        )
        for p in points
    ]
    across = Monitor(
        "across", Linear(tuple(points), random(num_layers, d), random(1)), AggregatorSpec("ema", alpha=0.2)
    )
    entry = HookPoint(1, HookKind.RESID_PRE)
    at_input = Monitor("at_input", Linear((entry,), random(1, d), random(1)), AggregatorSpec("mean"))
    cosine = Monitor("cosine", Cosine(points[1], random(d)), AggregatorSpec("max"))
    drift = Monitor("drift", Delta(tuple(points[:2]), random(2, d), random(1)))
    front = Front((random(6, d), random(5, 6)), (random(6), random(5)))
    mlp = Monitor("mlp", Mlp(points[-1], front, random(5), random(1)), AggregatorSpec("ema", alpha=0.2))
    encoder, offsets = random(12, d), random(4, 12)
    features = SaeFeatures(
        points[0],
        (2, 7),
        random(2),
        random(2),
        encoder,
        offsets,
        random(2, d),
        selection=Selection(Among.ALL, 5),
    )
    sae_features = Monitor("sae_features", features, AggregatorSpec("max"))
    powers = Polynomial(points[1], random(7, d), random(7), random(3, 2))
    polynomial = Monitor("polynomial", powers, AggregatorSpec("mean"), exclude_first=1)
    condition = Monitor("condition", Condition(points[0], random(d), -1), AggregatorSpec("last"))
    of_mean = Monitor("condition_mean", MeanCondition(points[-1], random(d)), AggregatorSpec("mean"))
    basis = torch.linalg.qr(random(d, 3)).Q.T.contiguous()
    cloud = Novelty(points[1], random(d), random(d).exp(), basis, random(3).exp(), random(1).exp())
    novelty = Monitor("novelty", cloud, AggregatorSpec("softmax", temperature=5.0))
    push = SteeringVector("push", "add", (Direction(points[1], random(d)),), max_norm_ratio=1e6)
    erase = SteeringVector("erase", "ablate", (Direction(points[0], random(d)),), max_norm_ratio=1e6)
    heads = random(2, 5), random(2, 5), random(2)
    attention = Monitor(
        "attention", Attention(points[-1], *heads, front), AggregatorSpec("attention"), Link.SIGMOID
    )
    rolling = Monitor(
        "rolling",
        Attention(points[0], random(3, d), random(3, d), random(3)),
        AggregatorSpec("rolling_attention", window=4),
        exclude_first=1,
    )
    multimax = Monitor("multimax", MultiMax(points[1], *heads[1:], front), AggregatorSpec("max"))
    probes += [across, at_input, cosine, mlp, sae_features, polynomial, condition, of_mean, novelty]
    probes += [attention, rolling, multimax, drift]
    probes = [replace(probe, calibration=REHEARSAL) for probe in probes]
    return MonitorSet(tuple(probes), {"push": push, "erase": erase})


@pytest.fixture
def start_engine(loaded: Callable[[str], LoadedModel]) -> Any:
    """Start an engine on a tiny model; stop every one that was started."""

    class Starter:
        def __init__(self) -> None:
            self.engines: list[TransformersEngine] = []

        async def __call__(self, name: str, **settings: Any) -> TransformersEngine:
            model = loaded(name)
            sizes = EngineSettings(
                **{
                    "max_batch": 4,
                    "prefill_chunk": 7,
                    "prefix_cache_tokens": 0,
                    "exchange_grace_s": 0.05,
                    **settings,
                }
            )
            engine = TransformersEngine(model, monitors_for(model), sizes)
            await engine.start()
            self.engines.append(engine)
            return engine

    return Starter()


@torch.inference_mode()
def plain_values(loaded: LoadedModel, monitors: Sequence[Monitor], ids: Sequence[int]) -> np.ndarray:
    """What monitors read in one plain forward pass, by `output_hidden_states` and their plain formula."""
    output = loaded.model(
        input_ids=torch.tensor([list(ids)], device=loaded.model.device),
        output_hidden_states=True,
        use_cache=False,
    )
    states = list(output.hidden_states)
    last = len(loaded.blocks.layers) - 1
    states[last + 1] = _last_block_output(
        loaded, ids
    )  # transformers reports the last one after the final norm

    def rows(point: HookPoint) -> torch.Tensor:
        state = states[point.layer if point.kind is HookKind.RESID_PRE else point.layer + 1]
        return state[0].float().cpu()

    values = [m.transform.values({point: rows(point) for point in m.hook_points}) for m in monitors]
    return torch.cat(values, dim=1).numpy()


def _last_block_output(loaded: LoadedModel, ids: Sequence[int]) -> torch.Tensor:
    kept: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    handle = loaded.blocks.layers[-1].register_forward_hook(keep)
    loaded.model(input_ids=torch.tensor([list(ids)], device=loaded.model.device), use_cache=False)
    handle.remove()
    return kept[0]
