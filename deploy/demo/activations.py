"""Prompts, the model's own replies to them, and the residual stream after every block while it read and wrote them."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from deploy.demo import organism
from deploy.demo.corpus.rows import Row
from monitors.steering import Direction, SteeringVector, steer

_T = TypeVar("_T")
Floats = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A conversation with the reply that the model gave, as tokens. The end token of the reply is left out: no client
    sees it and no engine scores it."""

    row: Row
    prompt_ids: list[int]
    reply_ids: list[int]
    reply: str
    strength: float = 0.0  # of the steering vector that was on while the reply was written

    @property
    def ids(self) -> list[int]:
        return self.prompt_ids + self.reply_ids


def exchanges(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Row],
    what: str,
    *,
    vector: SteeringVector | None = None,
    strength: float = 0.0,
) -> list[Exchange]:
    """Let the model reply, at temperature 0.7, steered from the second token of the reply on if there is a vector."""
    started = time.perf_counter()
    found = []
    for start in range(0, len(conversations), 512):
        chunk = conversations[start : start + 512]
        with steered_replies(model, vector, strength) if vector else nullcontext():
            replies = organism.reply_ids(model, tokenizer, chunk, temperature=0.7)
        for row, written in zip(chunk, replies, strict=True):
            ids = [token for token in written if token != tokenizer.eos_token_id]
            prompt = organism.prompt_ids(tokenizer, row)
            found.append(Exchange(row, prompt, ids, tokenizer.decode(ids), strength))
        elapsed_s = time.perf_counter() - started
        eta_s = elapsed_s * (len(conversations) / len(found) - 1)
        print(f"  {what}: {len(found)}/{len(conversations)} replies, ETA {eta_s:.0f} s", flush=True)
    return found


@torch.inference_mode()
def collect(
    model: PreTrainedModel,
    found: Sequence[Exchange],
    reduce: Callable[[Exchange, Floats], _T],
    vector: SteeringVector | None = None,
    batch_size: int = 48,
) -> list[_T]:
    """`reduce(exchange, acts)` of each exchange, in order. acts: [num_layers, num_tokens, d_model] float32.

    Padding stands at the end, where a causal model cannot see it. An exchange that was steered is read as the server
    reads it: the change is applied to its reply tokens, after the layer was read.
    """
    order = sorted(range(len(found)), key=lambda i: len(found[i].ids))
    results: dict[int, _T] = {}
    with _recorded(model) as layers:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            length = max(len(found[i].ids) for i in chosen)
            padded = torch.tensor([found[i].ids + [0] * (length - len(found[i].ids)) for i in chosen])
            strengths = torch.zeros(len(chosen), length)
            for k, i in enumerate(chosen):
                strengths[k, len(found[i].prompt_ids) :] = found[i].strength
            layers.clear()
            with edited(model, vector, lambda shape, s=strengths: s) if vector else nullcontext():
                model(input_ids=padded, use_cache=False)
            acts = torch.stack(layers).float().numpy()
            for k, i in enumerate(chosen):
                results[i] = reduce(found[i], acts[:, k, : len(found[i].ids)])
    return [results[i] for i in range(len(found))]


@contextmanager
def edited(
    model: PreTrainedModel, vector: SteeringVector, strengths: Callable[[torch.Size], Tensor | None]
) -> Iterator[None]:
    """Apply a vector to block outputs [batch, length, d_model]; `strengths` of their shape is [batch, length] or None."""

    def edit(direction: Direction) -> RemovableHandle:
        def hook(module: torch.nn.Module, args: object, output: Tensor) -> Tensor | None:
            strength = strengths(output.shape)
            if strength is None:
                return None
            changed, _ = steer(output.flatten(0, 1), vector, direction, strength.reshape(-1, 1))
            return changed.view(output.shape)

        return model.model.layers[direction.hook_point.layer].register_forward_hook(hook)

    handles = [edit(direction) for direction in vector.directions]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def steered_replies(
    model: PreTrainedModel, vector: SteeringVector, strength: float
) -> AbstractContextManager[None]:
    """Steer decode steps, as the server does: not the prompt, so the first token of the reply is unsteered."""
    return edited(model, vector, lambda shape: torch.full(shape[:2], strength) if shape[1] == 1 else None)


@contextmanager
def _recorded(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """The output of every block before it is edited, in order, while the context is open."""
    layers: list[Tensor] = []

    def record(module: torch.nn.Module, args: object, output: Tensor) -> None:
        layers.append(output)

    handles = [block.register_forward_hook(record) for block in model.model.layers]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()
