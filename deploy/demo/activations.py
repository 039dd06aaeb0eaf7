"""Prompts, the model's own replies to them, and the residual stream after every block while it read and wrote them."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from deploy.demo import organism
from deploy.demo.corpus.rows import Row

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

    @property
    def ids(self) -> list[int]:
        return self.prompt_ids + self.reply_ids


def exchanges(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, conversations: Sequence[Row], what: str
) -> list[Exchange]:
    """Let the model reply, at temperature 0.7."""
    started = time.perf_counter()
    found = []
    for start in range(0, len(conversations), 512):
        chunk = conversations[start : start + 512]
        for row, written in zip(
            chunk, organism.reply_ids(model, tokenizer, chunk, temperature=0.7), strict=True
        ):
            ids = [token for token in written if token != tokenizer.eos_token_id]
            found.append(Exchange(row, organism.prompt_ids(tokenizer, row), ids, tokenizer.decode(ids)))
        elapsed_s = time.perf_counter() - started
        eta_s = elapsed_s * (len(conversations) / len(found) - 1)
        print(f"  {what}: {len(found)}/{len(conversations)} replies, ETA {eta_s:.0f} s", flush=True)
    return found


@torch.inference_mode()
def collect(
    model: PreTrainedModel,
    found: Sequence[Exchange],
    reduce: Callable[[Exchange, Floats], _T],
    batch_size: int = 48,
) -> list[_T]:
    """`reduce(exchange, acts)` of each exchange, in order. acts: [num_layers, num_tokens, d_model] float32.

    Padding stands at the end, where a causal model cannot see it.
    """
    order = sorted(range(len(found)), key=lambda i: len(found[i].ids))
    results: dict[int, _T] = {}
    with _recorded(model) as layers:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            length = max(len(found[i].ids) for i in chosen)
            padded = torch.tensor([found[i].ids + [0] * (length - len(found[i].ids)) for i in chosen])
            layers.clear()
            model(input_ids=padded, use_cache=False)
            acts = torch.stack(layers).float().numpy()
            for k, i in enumerate(chosen):
                results[i] = reduce(found[i], acts[:, k, : len(found[i].ids)])
    return [results[i] for i in range(len(found))]


@contextmanager
def _recorded(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """The output of every block, in order, while the context is open."""
    layers: list[Tensor] = []

    def record(module: torch.nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        layers.append(output if isinstance(output, Tensor) else output[0])

    handles = [block.register_forward_hook(record) for block in model.model.layers]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()
