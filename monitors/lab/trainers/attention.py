"""Probes of several heads, fitted through a softmax over tokens, in which every token learns, whatever they are run with."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monitors.attention import Attention, MultiMax
from monitors.front import Front
from monitors.lab.trainers.base import Settings, Task
from monitors.lab.trainers.descent import Loss, Standardised, descend, standardised

_SMALL = 0.1  # of the values' weights at first; the logits' are 0, so that all tokens weigh alike


def attention(task: Task, settings: Settings) -> Attention:
    """BCE of the sum over heads of the attention means (2506.10805, one head on the row; 2601.11516, ten on an MLP).

    Settings: `heads`; `layers` (0 to 2) of `width` before them.
    """
    num_heads = int(settings["heads"])
    front, weight, bias = _fit(
        task, settings, 2 * num_heads, attention_loss
    )  # a bias of the logits says nothing
    (point,) = task.hook_points
    return Attention(point, weight[:num_heads], weight[num_heads:], bias[num_heads:], front)


def multimax(task: Task, settings: Settings) -> MultiMax:
    """BCE of the sum over heads of sum_t softmax(v / temperature)_t v_t; the server then takes the largest v itself.

    Fitted with the maximum, the probe fires on long benign texts (2601.11516). Settings: as of `attention`, and `temperature`.
    """
    temperature = settings["temperature"]

    def loss(values: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        return attention_loss(torch.cat([values / temperature, values], dim=2), lengths, labels)

    front, weight, bias = _fit(task, settings, int(settings["heads"]), loss)
    (point,) = task.hook_points
    return MultiMax(point, weight, bias, front)


def attention_loss(values: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
    """BCE of sum_h sum_t softmax_t(q) v. values: [B, T, 2 H], the logits q of the heads, then their values v -> [B]."""
    logits, v = values.chunk(2, dim=2)
    is_token = torch.arange(values.shape[1]) < lengths[:, None]
    weights = torch.softmax(logits.masked_fill(~is_token[..., None], -torch.inf), dim=1)
    score = (weights * v).sum(dim=(1, 2))
    return F.binary_cross_entropy_with_logits(score, labels, reduction="none")


class _Net(nn.Module):
    """The front, then an affine map to `num_values`, the last `num_heads` of which are values, and any before them logits."""

    def __init__(self, sizes: list[int], num_values: int, num_heads: int) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.heads = nn.Linear(sizes[-1], num_values)
        nn.init.zeros_(self.heads.weight)
        nn.init.zeros_(self.heads.bias)
        with torch.no_grad():
            self.heads.weight[-num_heads:].normal_(std=_SMALL / sizes[-1] ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = torch.relu(layer(x))
        values: Tensor = self.heads(x)
        return values

    def folded(self, x: Standardised) -> tuple[Front | None, Tensor, Tensor]:
        """The front, weight and bias for rows as they are."""
        layers = [(m.weight.detach(), m.bias.detach()) for m in (*self.hidden, self.heads)]
        layers[0] = x.folded(*layers[0])
        *hidden, (weight, bias) = layers
        if not hidden:
            return None, weight, bias
        weights, biases = zip(*hidden, strict=True)
        return Front(weights, biases), weight, bias


def _fit(task: Task, settings: Settings, num_values: int, loss: Loss) -> tuple[Front | None, Tensor, Tensor]:
    """The front, and the map from what it gives to the values of a token: [num_values, width], [num_values]."""
    x = standardised(task)
    sizes = [len(x.mean), *[int(settings["width"])] * int(settings["layers"])]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        net = _Net(sizes, num_values, int(settings["heads"]))
    descend(net, x, task, settings, loss)
    return net.folded(x)
