"""Activations with a known answer: noise, with a direction planted in the rows of positive examples."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from monitors.lab.activations import SHARD, Activations
from monitors.lab.dataset import Example
from monitors.lab.subject import Tokens
from monitors.types import HookPoint

D = 16
POINTS = (HookPoint(0), HookPoint(1))
PLANTED = POINTS[1]  # at the other there is noise only


def direction() -> np.ndarray:
    rng = np.random.default_rng(99)
    v = rng.normal(size=D)
    return v / np.linalg.norm(v)


def planted(
    folder: Path, *, num: int = 200, strength: float = 1.5, seed: int = 0, scale: float = 1.0, reply: int = 0
) -> Activations:
    """`num` examples of 3 to 12 prompt tokens (and `reply` more), half positive, in groups of two."""
    rng = np.random.default_rng(seed)
    examples, tokens, rows = [], [], {point: [] for point in POINTS}
    for i in range(num):
        label, num_prompt = i % 2, int(rng.integers(3, 13))
        length = num_prompt + reply
        examples.append(
            Example(
                f"row:{i}",
                text=f"word{rng.integers(50)}",
                label=label,
                group=f"g{i // 4 * 2 + label}",
                dataset="made",
            )
        )
        tokens.append(Tokens(tuple(range(length)), num_prompt))
        for point in POINTS:
            x = rng.normal(size=(length, D))
            if point == PLANTED:
                x += strength * label * direction()
            x[:, 0] *= scale  # one massive channel
            rows[point].append(torch.tensor(x, dtype=torch.float32))
    starts = np.zeros(num, dtype=np.int64)
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, num, SHARD):
        part = range(first, min(first + SHARD, num))
        lengths = np.array([len(tokens[i].ids) for i in part])
        starts[first : first + len(part)] = np.cumsum(lengths) - lengths
        save_file(
            {str(p): torch.cat([rows[p][i] for i in part]) for p in POINTS},
            folder / f"{first // SHARD:05d}.safetensors",
        )
    return Activations(tuple(examples), tuple(tokens), POINTS, D, folder, _starts=starts)
