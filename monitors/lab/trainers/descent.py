"""Gradient descent on every token's row: what the trainers share that are not solved in closed form."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import GroupShuffleSplit
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from monitors.lab.statistics import Ints
from monitors.lab.trainers.base import Settings, Task

_BATCH = 32  # examples
_HELD_OUT = 0.15  # of the groups, for early stopping

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(values [B, T, k], zero where there is no token; lengths [B] int64; labels [B] float32) -> loss of each example, [B]."""

DESCENT: Settings = {"epochs": 30, "learning_rate": 1e-2, "weight_decay": 1e-3, "patience": 0}
"""The settings of `descend`. patience: epochs without a better held-out loss before it stops; 0 holds nothing out."""


@dataclass(frozen=True, slots=True, eq=False)
class Standardised:
    """The rows of each example, all hook points side by side, with what was taken out per channel."""

    rows: tuple[Tensor, ...]  # each [n_tokens, D] float32
    mean: Tensor  # [D]
    std: Tensor  # [D]

    def folded(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The affine map on rows as they are that equals this one on standardised rows. weight: [h, D], bias: [h]."""
        own = weight.double() / self.std.double()
        return own.float(), (bias.double() - own @ self.mean.double()).float()


def standardised(task: Task) -> Standardised:
    """Of the task's examples, by the mean and deviation over their tokens: a massive channel weighs no more than another."""
    points = task.hook_points
    rows = [
        torch.cat([task.pooled.tokens(p, task.phase, index, task.exclude_first) for p in points], dim=1)
        for index in task.indices
    ]
    every = torch.cat(rows)
    mean, std = every.mean(dim=0), every.std(dim=0, correction=0)
    std = torch.where(std < 1e-6 * (1 + mean.abs()), torch.ones_like(std), std)  # says nothing: leave it
    return Standardised(tuple((own - mean) / std for own in rows), mean, std)


def descend(net: nn.Module, x: Standardised, task: Task, settings: Settings, loss: Loss) -> None:
    """Fit `net`, a function of rows [n, D] -> values [n, k], by AdamW; biases don't decay, classes weigh alike.

    The same seed gives the same result. With `patience`, whole groups are held out, and the net ends as it was when it did
    best on them.
    """
    lengths = torch.tensor([len(own) for own in x.rows])
    labels = torch.tensor(task.labels, dtype=torch.float32)
    weights = torch.where(labels == 1, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))

    def losses(batch: Tensor) -> Tensor:
        values = net(torch.cat([x.rows[i] for i in batch.tolist()]))
        padded = pad_sequence([*torch.split(values, lengths[batch].tolist())], batch_first=True)
        return weights[batch] * loss(padded, lengths[batch], labels[batch])

    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in net.parameters() if p.dim() > 1],
            "weight_decay": settings["weight_decay"],
        },
        {"params": [p for p in net.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings["learning_rate"])
    patience = int(settings["patience"])
    train, held_out = _split(task, patience)
    rng = np.random.default_rng(task.seed)
    best, best_at, kept = float("inf"), 0, deepcopy(net.state_dict())
    for epoch in range(int(settings["epochs"])):
        with torch.enable_grad():
            for batch in torch.split(torch.tensor(rng.permutation(train)), _BATCH):
                optimizer.zero_grad()
                torch.autograd.backward(losses(batch).mean())
                optimizer.step()
        if len(held_out):
            with torch.no_grad():
                found = float(losses(torch.tensor(held_out)).mean())
            if found < best:
                best, best_at, kept = found, epoch, deepcopy(net.state_dict())
            elif epoch - best_at >= patience:
                break
    if len(held_out):
        net.load_state_dict(kept)


def _split(task: Task, patience: int) -> tuple[Ints, Ints]:
    """Places in the task to fit on and to stop by; none of the latter if the split would leave a side without a class."""
    everything, nothing = np.arange(len(task.labels)), np.arange(0)
    groups = task.pooled.acts.groups[list(task.indices)]
    if not patience or len(np.unique(groups)) < 1 / _HELD_OUT:
        return everything, nothing
    splitter = GroupShuffleSplit(1, test_size=_HELD_OUT, random_state=task.seed)
    train, held_out = next(splitter.split(everything, groups=groups))
    both = all(len(np.unique(task.labels[side])) > 1 for side in (train, held_out))
    return (train, held_out) if both else (everything, nothing)
