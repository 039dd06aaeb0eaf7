"""A tiny transformer whose one behaviour is written down: the logit of token YES is 3 (x . cause) at the last layer.

Words of the positive class carry two directions, `cause` and `bystander`. Attention spreads both over the sequence in the
first block. Nothing reads the bystander.
"""

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from monitors.aggregate import AggregatorSpec
from monitors.base import Monitor
from monitors.hook_points import Blocks
from monitors.lab.dataset import Example
from monitors.lab.subject import Subject, Tokens
from monitors.linear import Linear
from monitors.types import HookPoint

D, VOCAB, NUM_LAYERS, YES = 24, 48, 4, 5
_MARKED = range(8, 20)  # words of the positive class
_PLAIN = range(20, VOCAB)
_GAP = 3.0
POINT = HookPoint(1)
MEAN = AggregatorSpec("mean")


def unit(seed: int) -> Tensor:
    v = torch.randn(D, generator=torch.Generator().manual_seed(seed))
    return v / v.norm()


CAUSE = unit(100)
BYSTANDER = unit(101) - (unit(101) @ CAUSE) * CAUSE
BYSTANDER = BYSTANDER / BYSTANDER.norm()


def probe(direction: Tensor) -> Monitor:
    return Monitor("probe", Linear((POINT,), direction[None], torch.zeros(1)), MEAN)


class Block(nn.Module):
    """x + what earlier tokens hold, on average (first block only), + a small MLP that keeps off the bystander."""

    def __init__(self, index: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(200 + index)
        keep = torch.eye(D) - torch.outer(CAUSE, CAUSE) - torch.outer(BYSTANDER, BYSTANDER)
        self.read = nn.Parameter(0.2 * torch.randn(D, D, generator=generator) @ keep, requires_grad=False)
        self.write = nn.Parameter(0.2 * keep @ torch.randn(D, D, generator=generator), requires_grad=False)
        self.attends = index == 0

    def forward(self, x: Tensor) -> Tensor:
        if self.attends:
            counts = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
            x = x + x.cumsum(dim=1) / counts
        return x + torch.relu(x @ self.read.T) @ self.write.T


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        embedding = 0.5 * torch.randn(VOCAB, D, generator=generator)
        embedding -= 0.8 * torch.outer(embedding @ CAUSE, CAUSE)  # plain words hardly vary along it
        embedding[list(_MARKED)] += _GAP * (CAUSE + BYSTANDER)
        self.embed = nn.Parameter(embedding, requires_grad=False)
        head = 0.1 * torch.randn(VOCAB, D, generator=generator)
        head -= torch.outer(head @ CAUSE, CAUSE) + torch.outer(head @ BYSTANDER, BYSTANDER)
        head[YES] = 3.0 * CAUSE
        self.head = nn.Parameter(head, requires_grad=False)
        self.layers = nn.ModuleList(Block(index) for index in range(NUM_LAYERS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        x = self.embed[input_ids]
        for layer in self.layers:
            x = layer(x)
        bias = torch.zeros(VOCAB)
        bias[YES] = -2.0
        return SimpleNamespace(logits=x @ self.head.T + bias)


def toy_subject() -> Subject:
    model = Toy().eval()
    return Subject("toy", model, Blocks(tuple(model.layers), D, "layers"), tokenize, fingerprint="0" * 64)


def tokenize(example: Example) -> Tokens:
    """The ids are in a tag, so that the words of the text give nothing away. A reply is read as a token's number."""
    prompt = tuple(map(int, example.tags["ids"].split()))
    reply = tuple(map(int, example.reply.split())) if example.reply else ()
    return Tokens((*prompt, *reply), len(prompt))


def toy_examples(num: int, seed: int = 0, *, telling_text: bool = False) -> tuple[Example, ...]:
    """Half positive: a third of their words are marked. Behaviour differs by class."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(num):
        label = number % 2
        ids = rng.choice(list(_PLAIN), size=int(rng.integers(6, 12)))
        if label:
            ids[::3] = rng.choice(list(_MARKED), size=len(ids[::3]))
        words = " ".join(f"w{w}" for w in rng.integers(0, 60, size=6))
        found.append(
            Example(
                f"toy:{number}",
                text=f"{words} tell{label}" if telling_text else words,
                label=label,
                group=f"g{seed}.{number}",
                tags={
                    "ids": " ".join(map(str, ids)),
                    "continuation_positive": str(YES),
                    "continuation_negative": "30",
                },
            )
        )
    return tuple(found)
