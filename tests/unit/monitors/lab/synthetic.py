"""Activations with a known answer: noise, with something planted in the rows of examples that their label goes by."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from monitors.lab.activations import ROWS, SHARD, Activations, shard_path
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


Shift = Callable[[np.random.Generator, int], np.ndarray | float]
"""(rng, label) -> what is added to each row of an example."""


def planted(folder: Path, *, strength: float = 1.5, **rest) -> Activations:
    """A direction in the rows of positive examples."""
    return made(folder, lambda rng, label: strength * label * direction(), **rest)


def exclusive_or(rng: np.random.Generator, label: int) -> np.ndarray:
    """Along two directions, of either sign each: the same one in positive examples, opposite ones in the others."""
    shift, sign = np.zeros(D), rng.choice([-2.0, 2.0])
    shift[[1, 2]] = sign, sign if label else -sign
    return shift


def anywhere(rng: np.random.Generator, label: int) -> np.ndarray:
    """Positive examples lie away from the others, each in a direction of its own."""
    v = rng.normal(size=D)
    return 4.0 * label * v / np.linalg.norm(v)


def nothing(rng: np.random.Generator, label: int) -> float:
    """For examples that differ by a needle, or not at all."""
    return 0.0


def made(
    folder: Path,
    shift: Shift,
    *,
    num: int = 200,
    seed: int = 0,
    scale: float = 1.0,
    offset: float = 0.0,
    num_tokens: tuple[int, int] = (3, 12),
    needle: float = 0.0,
    reply: int = 0,
) -> Activations:
    """`num` examples of 3 to 12 prompt tokens (and `reply` more), half positive, in groups of two.

    `needle` is how far one token of each positive example lies along the direction.
    """
    rng = np.random.default_rng(seed)
    examples, tokens, rows = [], [], {point: [] for point in POINTS}
    for i in range(num):
        label, num_prompt = i % 2, int(rng.integers(num_tokens[0], num_tokens[1] + 1))
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
        added = shift(rng, label)
        for point in POINTS:
            x = rng.normal(size=(length, D))
            if point == PLANTED:
                x += added
                if needle and label:
                    x[rng.integers(num_prompt)] += needle * direction()
            x[:, 0] = x[:, 0] * scale + offset  # one massive channel
            rows[point].append(torch.tensor(x, dtype=torch.float32))
    starts = np.zeros(num, dtype=np.int64)
    for first in range(0, num, SHARD):
        part = range(first, min(first + SHARD, num))
        lengths = np.array([len(tokens[i].ids) for i in part])
        starts[first : first + len(part)] = np.cumsum(lengths) - lengths
        for point in POINTS:
            path = shard_path(folder, point, first // SHARD)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({ROWS: torch.cat([rows[point][i] for i in part])}, path)
    return Activations(tuple(examples), tuple(tokens), POINTS, D, folder, _starts=starts)
