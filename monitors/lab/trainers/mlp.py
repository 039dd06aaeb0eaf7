"""MLPs of each token, fitted by the mean of their logits (2506.10805, 2601.11516)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monitors.front import Front
from monitors.lab.trainers.base import Settings, Task
from monitors.lab.trainers.descent import descend, standardised
from monitors.mlp import Mlp


def mlp(task: Task, settings: Settings) -> Mlp:
    """BCE of the mean logit, by one hidden layer or two of `width`; standardisation is folded into the first, exactly."""
    x = standardised(task)
    width, num_layers = int(settings["width"]), int(settings["layers"])
    sizes = [len(x.mean), *[width] * num_layers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        hidden = [nn.Linear(*pair) for pair in pairwise(sizes)]
        last = nn.Linear(width, 1)
    net = nn.Sequential(*[part for layer in hidden for part in (layer, nn.ReLU())], last)
    descend(net, x, task, settings, _mean_loss)
    weights = [layer.weight.detach() for layer in hidden]
    biases = [layer.bias.detach() for layer in hidden]
    weights[0], biases[0] = x.folded(weights[0], biases[0])
    (point,) = task.hook_points
    return Mlp(point, Front(tuple(weights), tuple(biases)), last.weight.detach()[0], last.bias.detach())


def _mean_loss(values: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
    mean = values[..., 0].sum(dim=1) / lengths
    return F.binary_cross_entropy_with_logits(mean, labels, reduction="none")
