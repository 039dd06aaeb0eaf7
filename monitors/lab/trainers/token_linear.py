"""Linear probes fitted on every token by gradient: what the losses on token logits share."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from monitors.lab.trainers.base import Settings, Task
from monitors.linear import Linear

_BATCH = 32  # examples

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits [B, T], zero where there is no token; lengths [B] int64; labels [B] float32) -> loss of each example, [B]."""

EPOCHS: Settings = {"epochs": 30, "learning_rate": 1e-2, "weight_decay": 1e-3}
"""The settings of `fit_tokens`."""


def fit_tokens(task: Task, settings: Settings, loss: Loss) -> Linear:
    """AdamW from zero on rows standardised per channel, classes weighted alike; the same seed gives the same probe."""
    rows = [_rows(task, index) for index in task.indices]
    every = torch.cat(rows)
    mean, std = every.mean(dim=0), every.std(dim=0, correction=0)
    std = torch.where(std < 1e-6 * (1 + mean.abs()), torch.ones_like(std), std)  # says nothing: leave it
    rows = [(own - mean) / std for own in rows]
    lengths = torch.tensor([len(own) for own in rows])
    labels = torch.tensor(task.labels, dtype=torch.float32)
    weights = torch.where(labels == 1, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
    w = torch.zeros(len(mean), requires_grad=True)
    b = torch.zeros(1, requires_grad=True)
    groups: list[dict[str, Any]] = [
        {"params": [w], "weight_decay": settings["weight_decay"]},
        {"params": [b], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings["learning_rate"])
    rng = np.random.default_rng(task.seed)
    with torch.enable_grad():
        for _ in range(int(settings["epochs"])):
            for batch in torch.split(torch.tensor(rng.permutation(len(rows))), _BATCH):
                logits = torch.cat([rows[i] for i in batch.tolist()]) @ w + b
                padded = pad_sequence([*torch.split(logits, lengths[batch].tolist())], batch_first=True)
                losses = weights[batch] * loss(padded, lengths[batch], labels[batch])
                optimizer.zero_grad()
                torch.autograd.backward(losses.mean())
                optimizer.step()
    shape = (len(task.hook_points), -1)
    return Linear.folded(
        task.hook_points,
        w.detach().reshape(shape),
        float(b.detach()),
        mean.reshape(shape),
        std.reshape(shape),
    )


def _rows(task: Task, index: int) -> Tensor:
    """Of all hook points side by side: [n_tokens, L * d] float32."""
    points = task.hook_points
    return torch.cat([task.pooled.tokens(p, task.phase, index, task.exclude_first) for p in points], dim=1)
