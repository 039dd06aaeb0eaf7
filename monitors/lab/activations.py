"""Residual-stream rows of examples at hook points: computed once, kept on disk, resumable.

A cache folder holds one sub-folder per (model, tokenizer, examples, dtype) and within it one per hook point, with
safetensors shards of `SHARD` examples each: a tensor `rows` [tokens of the shard, d_model]. So whoever asks for other
layers of the same examples computes only what is new. A shard is written under another name and then renamed, so an
interrupted run goes on where it stopped.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from monitors.hook_points import HookPointError
from monitors.hooks import attach
from monitors.lab.dataset import Example
from monitors.lab.subject import Subject, Tokens
from monitors.types import HookPoint

SHARD = 256  # examples
ROWS = "rows"
_BATCH_TOKENS = 8192  # padded, per forward pass

Progress = Callable[[int, int], None]
"""(examples done, examples in all); called after each batch."""


def no_progress(done: int, total: int) -> None:
    """Say nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """The rows of examples, read from disk when asked for."""

    examples: tuple[Example, ...]
    tokens: tuple[Tokens, ...]
    hook_points: tuple[HookPoint, ...]
    d_model: int
    folder: Path
    _starts: NDArray[np.int64] = field(repr=False)  # [n]: first row of each example within its shard

    def rows(self, point: HookPoint, index: int) -> Tensor:
        """The rows of one example, prompt then reply: [n_tokens, d_model] float32."""
        return self.batch(point, [index])[0]

    def batch(self, point: HookPoint, indices: Sequence[int]) -> list[Tensor]:
        """The rows of several examples, each [n_tokens, d_model] float32; a shard is opened once."""
        found: dict[int, Tensor] = {}
        for shard in sorted({index // SHARD for index in indices}):
            with safe_open(shard_path(self.folder, point, shard), framework="pt") as file:
                part = file.get_slice(ROWS)
                for index in (i for i in indices if i // SHARD == shard):
                    start = int(self._starts[index])
                    found[index] = part[start : start + len(self.tokens[index].ids)].float()
        return [found[index] for index in indices]

    @property
    def labels(self) -> NDArray[np.int64]:
        """[n] of 0 and 1. Raises ValueError if one is unknown."""
        if any(example.label is None for example in self.examples):
            raise ValueError("some examples have no label")
        return np.array([example.label for example in self.examples], dtype=np.int64)

    @property
    def groups(self) -> NDArray[np.str_]:
        return np.array([example.group for example in self.examples])


@torch.inference_mode()
def collect(
    subject: Subject,
    examples: Sequence[Example],
    hook_points: Sequence[HookPoint],
    cache: Path,
    *,
    dtype: torch.dtype = torch.float32,
    progress: Progress = no_progress,
) -> Activations:
    """Compute what is not in the cache yet.

    Raises HookPointError, ValueError for an example without tokens, and OSError where the cache can't be written.
    """
    tokens = tuple(cut(subject.tokenize(example), subject.max_tokens) for example in examples)
    for example, its in zip(examples, tokens, strict=True):
        if not its.ids:
            raise ValueError(f"example {example.id!r} has no tokens")
    points = tuple(dict.fromkeys(hook_points))
    folder = cache / _key(subject, tokens, dtype)
    for first in range(0, len(tokens), SHARD):
        paths = {point: shard_path(folder, point, first // SHARD) for point in points}
        missing = [point for point in points if not paths[point].exists()]
        if missing:
            part = tokens[first : first + SHARD]
            rows = _run(subject, part, missing, dtype, _counted_from(first, len(tokens), progress))
            for point in missing:
                _write(rows[point], paths[point], cache)
        progress(min(first + SHARD, len(tokens)), len(tokens))
    return Activations(
        tuple(examples), tokens, points, subject.blocks.d_model, folder, _starts=_starts(tokens)
    )


def _run(
    subject: Subject,
    tokens: Sequence[Tokens],
    points: Sequence[HookPoint],
    dtype: torch.dtype,
    progress: Callable[[int], None],
) -> dict[HookPoint, Tensor]:
    """One shard: examples of like length go together; padding stands at the end and is masked."""
    device = next(subject.model.parameters()).device
    found: dict[HookPoint, dict[int, Tensor]] = {point: {} for point in points}
    seen: dict[HookPoint, Tensor] = {}

    def visit(point: HookPoint, hidden: Tensor) -> None:
        seen[point] = hidden

    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i].ids))
    with attach(subject.blocks, points, visit):
        start = 0
        while start < len(order):
            batch = _next_batch(order[start:], tokens)
            width = len(tokens[batch[-1]].ids)
            ids = torch.zeros(len(batch), width, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for row, index in enumerate(batch):
                own = tokens[index].ids
                ids[row, : len(own)] = torch.tensor(own)
                mask[row, : len(own)] = 1
            seen.clear()
            subject.model(input_ids=ids.to(device), attention_mask=mask.to(device))
            for point in points:
                if point not in seen:
                    raise HookPointError(f"{point} did not fire in a forward pass")
                for row, index in enumerate(batch):
                    rows = seen[point][row, : len(tokens[index].ids)]
                    found[point][index] = rows.to("cpu", dtype, copy=True)
            start += len(batch)
            progress(start)
    return {point: torch.cat([found[point][i] for i in range(len(tokens))]) for point in points}


def _counted_from(first: int, total: int, progress: Progress) -> Callable[[int], None]:
    return lambda done: progress(first + done, total)


def _next_batch(order: Sequence[int], tokens: Sequence[Tokens]) -> list[int]:
    """As many as fit, one at least. `order` is by rising length."""
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * len(tokens[index].ids) > _BATCH_TOKENS:
            break
        batch.append(index)
    return batch


def cut(tokens: Tokens, limit: int) -> Tokens:
    """At most `limit` tokens, from the start."""
    reference = None if tokens.reference is None or tokens.reference >= limit else tokens.reference
    return Tokens(tokens.ids[:limit], min(tokens.num_prompt, limit), reference)


def _starts(tokens: Sequence[Tokens]) -> NDArray[np.int64]:
    lengths = np.array([len(t.ids) for t in tokens], dtype=np.int64)
    starts = np.zeros_like(lengths)
    for first in range(0, len(lengths), SHARD):
        part = lengths[first : first + SHARD]
        starts[first : first + SHARD] = np.cumsum(part) - part
    return starts


def shard_path(folder: Path, point: HookPoint, number: int) -> Path:
    """Where the rows of examples number * SHARD to (number + 1) * SHARD - 1 are kept."""
    return folder / str(point) / f"{number:05d}.safetensors"


def _write(rows: Tensor, path: Path, cache: Path) -> None:
    """Raises OSError with what to do, and leaves nothing half-written."""
    unfinished = path.with_suffix(f".{os.getpid()}.part")  # another process may be at the same shard
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({ROWS: rows}, unfinished)
        unfinished.rename(path)
    except (OSError, SafetensorError) as error:
        unfinished.unlink(missing_ok=True)
        raise OSError(
            f"can't keep activations in {cache}: {error}; make room there or give another --cache. "
            "What is there already is not computed again"
        ) from error


def _key(subject: Subject, tokens: Sequence[Tokens], dtype: torch.dtype) -> str:
    digest = hashlib.sha256()
    parts = [subject.fingerprint, subject.tokenizer_hash, str(dtype)]
    digest.update(json.dumps(parts).encode())
    for its in tokens:
        digest.update(np.array([its.num_prompt, *its.ids], dtype=np.int64).tobytes())
    return digest.hexdigest()[:24]
