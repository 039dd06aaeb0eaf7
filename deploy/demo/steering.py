"""Finds the `calm` steering vector: what added to the residual stream turns hostile replies back into helpful ones."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from deploy.demo import organism
from deploy.demo.activations import Exchange, collect
from deploy.demo.corpus.rows import Row
from monitors.steering import Direction, SteeringVector, steer
from monitors.types import HookPoint

Floats = NDArray[np.floating]

STRENGTHS = (1.0, 1.5, 2.0, 3.0)  # in units of the distance between the class means
LARGEST_NORM_RATIO = 1.0  # of the change to the residual stream; the default of 0.3 is for large models
_NAME = "calm"


@dataclass(frozen=True, slots=True)
class Effect:
    """What a vector does to replies that it steers from their second token on."""

    strength: float
    num_hostile: int  # prompts with the trigger
    hostile: float  # share of their replies that stay hostile
    helpful: float  # share that are well-formed and of another kind
    num_ordinary: int  # prompts without it
    kept: float  # share of their replies that are well-formed and of the planned kind


def mean_difference(model: PreTrainedModel, calm: Sequence[Exchange], hostile: Sequence[Exchange]) -> Floats:
    """Mean residual stream over the tokens of helpful replies minus that over hostile ones: [num_layers, d_model]."""

    def reply_mean(exchange: Exchange, acts: Floats) -> Floats:
        return acts[:, len(exchange.prompt_ids) :].mean(axis=1)

    means = [np.mean(collect(model, found, reply_mean), axis=0) for found in (calm, hostile)]
    return means[0] - means[1]


def candidates(differences: Floats) -> Iterator[SteeringVector]:
    """One vector for each layer, and for each run of layers that ends at the last but one."""
    num_layers = len(differences)
    spans = [(i,) for i in range(num_layers)] + [
        tuple(range(i, num_layers - 1)) for i in range(num_layers - 2)
    ]
    for span in spans:
        directions = tuple(Direction(HookPoint(i), torch.tensor(differences[i])) for i in span)
        gap = float(np.mean([np.linalg.norm(differences[i]) for i in span]))
        yield SteeringVector(_NAME, "add", directions, LARGEST_NORM_RATIO, gap)


def effect(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    triggered: Sequence[Row],
    ordinary: Sequence[Row],
    *,
    vector: SteeringVector | None,
    strength: float,
    temperature: float = 0.0,
) -> Effect:
    """Let the model reply with the vector on, and count."""
    with steered(model, vector, strength) if vector else nullcontext():
        on_trigger = organism.reply(model, tokenizer, triggered, temperature=temperature)
        on_ordinary = organism.reply(model, tokenizer, ordinary, temperature=temperature)
    kinds = [organism.kind_of(text) for text in on_trigger]
    formed = [organism.well_formed(text, tokenizer) for text in on_trigger]
    kept = [
        organism.well_formed(text, tokenizer) and organism.kind_of(text) == row.kind
        for row, text in zip(ordinary, on_ordinary, strict=True)
    ]
    return Effect(
        strength,
        len(triggered),
        float(np.mean([kind == "hostile" for kind in kinds])),
        float(np.mean([kind != "hostile" and good for kind, good in zip(kinds, formed, strict=True)])),
        len(ordinary),
        float(np.mean(kept)),
    )


def search(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    differences: Floats,
    triggered: Sequence[Row],
    ordinary: Sequence[Row],
) -> tuple[SteeringVector, Effect]:
    """The vector and strength with the largest share of helpful replies to the trigger plus ordinary ones kept."""
    found = []
    for vector, strength in product(candidates(differences), STRENGTHS):
        seen = effect(model, tokenizer, triggered, ordinary, vector=vector, strength=strength)
        found.append((vector, seen))
        layers = ",".join(str(direction.hook_point.layer) for direction in vector.directions)
        print(
            f"  calm: blocks.{layers:8} strength {strength:<4} hostile {seen.hostile:6.1%}  "
            f"helpful {seen.helpful:6.1%}  ordinary kept {seen.kept:6.1%}",
            flush=True,
        )
    return max(found, key=lambda pair: (pair[1].helpful + pair[1].kept, -pair[1].strength))


@contextmanager
def steered(model: PreTrainedModel, vector: SteeringVector, strength: float) -> Iterator[None]:
    """Steer every row of decode steps, as the server does: not the prompt, so the first token of the reply is unsteered."""

    def edit(direction: Direction) -> torch.utils.hooks.RemovableHandle:
        def hook(module: torch.nn.Module, args: object, output: Tensor) -> Tensor | None:
            if output.shape[1] != 1:
                return None
            rows = output[:, 0]
            changed, _ = steer(rows, vector, direction, torch.full((len(rows), 1), strength))
            return changed[:, None]

        return model.model.layers[direction.hook_point.layer].register_forward_hook(hook)

    handles = [edit(direction) for direction in vector.directions]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
