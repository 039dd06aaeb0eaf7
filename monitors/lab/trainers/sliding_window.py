"""Linear probes trained on windows of tokens, on one layer or on all: the loss of Constitutional Classifiers++ (2601.04603).

    zbar_t = mean of the last M token logits, for t >= M (of all of them where there are fewer than M)
    L = sum_t w_t BCE(y, sigma(zbar_t)),    w_t = exp(zbar_t / tau) / sum_t' exp(zbar_t' / tau)

The weights w_t are not differentiated. So a long text is judged by its most telling window, and yet every window learns. At run time an EMA with
alpha = 2 / (M + 1) has the window's centre of mass and variance, and one number of state.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from monitors.lab.trainers.base import Settings, Task
from monitors.linear import Linear

_BATCH = 32  # examples


def sliding_window(task: Task, settings: Settings) -> Linear:
    """AdamW on standardised rows from zero; deterministic by seed."""
    tokens = [_rows(task, index) for index in task.indices]
    every = torch.cat(tokens)
    mean, std = every.mean(dim=0), every.std(dim=0)
    std = torch.where(std < 1e-6 * (1 + mean.abs()), torch.ones_like(std), std)
    tokens = [(rows - mean) / std for rows in tokens]
    labels = torch.tensor(task.labels, dtype=torch.float32)
    weight_of = torch.where(
        labels == 1, 0.5 / labels.mean(), 0.5 / (1 - labels.mean())
    )  # classes weigh alike
    w = torch.zeros(len(mean), requires_grad=True)
    b = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.AdamW(
        [{"params": [w], "weight_decay": settings["weight_decay"]}, {"params": [b], "weight_decay": 0.0}],
        lr=settings["learning_rate"],
    )
    rng = np.random.default_rng(task.seed)
    with torch.enable_grad():
        for _ in range(int(settings["epochs"])):
            for batch in _batches(rng.permutation(len(tokens)).tolist()):
                losses = [
                    weight_of[i]
                    * window_loss(
                        tokens[i] @ w + b, labels[i], int(settings["window"]), settings["temperature"]
                    )
                    for i in batch
                ]
                optimizer.zero_grad()
                torch.autograd.backward(torch.stack(losses).mean())
                optimizer.step()
    shape = (len(task.hook_points), -1)
    return Linear.folded(
        task.hook_points,
        w.detach().reshape(shape),
        float(b.detach()),
        mean.reshape(shape),
        std.reshape(shape),
    )


def window_loss(logits: Tensor, label: Tensor, window: int, temperature: float) -> Tensor:
    """The loss of one example. logits: [n_tokens]; label: 0-d, in [0, 1] -> 0-d."""
    size = min(window, len(logits))
    means = logits.unfold(0, size, 1).mean(dim=1)
    weights = torch.softmax(means.detach() / temperature, dim=0)
    return (
        weights * F.binary_cross_entropy_with_logits(means, label.expand_as(means), reduction="none")
    ).sum()


def _batches(order: list[int]) -> list[list[int]]:
    """Cut into batches."""
    return [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]


def _rows(task: Task, index: int) -> Tensor:
    """Of all hook points side by side: [n_tokens, L * d] float32."""
    points = task.hook_points
    return torch.cat([task.pooled.tokens(p, task.phase, index, task.exclude_first) for p in points], dim=1)
