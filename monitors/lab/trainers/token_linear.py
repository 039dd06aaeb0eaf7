"""Linear probes, on one layer or on all, whose loss looks at each token's logit."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monitors.lab.trainers.base import Settings, Task
from monitors.lab.trainers.descent import Loss, descend, standardised
from monitors.lab.trainers.windows import window_loss, window_means
from monitors.linear import Linear


def sliding_window(task: Task, settings: Settings) -> Linear:
    """The loss of Constitutional Classifiers++ (2601.04603).

    At run time an EMA with alpha = 2 / (window + 1) has the window's centre of mass and variance, and one number of state.
    """
    window, temperature = int(settings["window"]), settings["temperature"]

    def loss(values: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        return window_loss(values[..., 0], lengths, labels, window, temperature)

    return _fit(task, settings, loss)


def rolling_max(task: Task, settings: Settings) -> Linear:
    """BCE of the largest mean of `window` consecutive logits (2506.10805)."""
    window = int(settings["window"])

    def loss(values: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        means, is_window = window_means(values[..., 0], lengths, window)
        largest = means.masked_fill(~is_window, -torch.inf).amax(dim=1)
        return F.binary_cross_entropy_with_logits(largest, labels, reduction="none")

    return _fit(task, settings, loss)


def softmax(task: Task, settings: Settings) -> Linear:
    """BCE of sum_t softmax(z / temperature)_t z_t (2506.10805, temperature 5)."""

    def loss(values: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        z = values[..., 0]
        is_token = torch.arange(z.shape[1]) < lengths[:, None]
        weights = torch.softmax((z / settings["temperature"]).masked_fill(~is_token, -torch.inf), dim=1)
        return F.binary_cross_entropy_with_logits((weights * z).sum(dim=1), labels, reduction="none")

    return _fit(task, settings, loss)


def _fit(task: Task, settings: Settings, loss: Loss) -> Linear:
    x = standardised(task)
    net = nn.Linear(len(x.mean), 1)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    descend(net, x, task, settings, loss)
    weight, bias = x.folded(net.weight.detach(), net.bias.detach())
    return Linear(task.hook_points, weight.reshape(len(task.hook_points), -1), bias)
