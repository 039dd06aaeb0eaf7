"""What an edit does to text that has nothing to do with the behaviour."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from monitors.lab.causal.edits import Edit
from monitors.lab.causal.forward import Passage, run
from monitors.lab.dataset import Example
from monitors.lab.sections.causal import Specificity
from monitors.lab.statistics import Floats
from monitors.lab.subject import Subject, Tokens
from monitors.types import HookPoint

_ENOUGH = 1.1  # factor from the target within which we try no more
_WEAKER = 2 / 3  # of the target
_TINY = 1e-12
_MAX_TOKENS = 64  # of each text: the unedited log-probabilities of all of them are held


class NeutralText:
    """Texts with the model's predictions for them. Every token is edited: the hardest case."""

    def __init__(
        self,
        subject: Subject,
        examples: Sequence[Example],
        points: Sequence[HookPoint],
        exclude_first: int,
        step: Callable[[int], None],
    ) -> None:
        tokens = [subject.tokenize(example).ids[:_MAX_TOKENS] for example in examples]
        self._passages = [
            Passage(Tokens(ids, len(ids)), min(exclude_first, len(ids) - 1), owner=number)
            for number, ids in enumerate(ids for ids in tokens if ids)
        ]
        self._subject, self._points, self._step = subject, tuple(points), step
        self._base: dict[int, Tensor] = {}
        run(subject, self._passages, (), None, consume=self._keep, step=step)

    def __len__(self) -> int:
        return len(self._passages)

    def mean_kl(self, edit: Edit) -> float:
        """Nats per token."""
        return float(self._compare(edit)[0].mean())

    def specificity(self, edit: Edit) -> Specificity:
        """KL(unedited || edited) per token, the perplexity's ratio, and how often the likeliest token stays."""
        kl, loss, agrees = self._compare(edit)
        return Specificity(
            mean_kl=float(kl.mean()),
            p95_kl=float(np.percentile(kl, 95)),
            perplexity_ratio=float(np.exp(np.clip(loss.mean() if len(loss) else 0.0, -50, 50))),
            top1_agreement=float(agrees.mean()),
        )

    def _keep(self, indices: Sequence[int], logits: Sequence[Tensor]) -> None:
        for index, its in zip(indices, logits, strict=True):
            self._base[index] = torch.log_softmax(its, dim=-1)

    def _compare(self, edit: Edit) -> tuple[Floats, Floats, Floats]:
        """Per token: KL, rise of the loss (but of the last token), agreement of the likeliest."""
        kls: dict[int, Tensor] = {}
        losses: dict[int, Tensor] = {}
        agree: dict[int, Tensor] = {}

        def consume(indices: Sequence[int], logits: Sequence[Tensor]) -> None:
            for index, its in zip(indices, logits, strict=True):
                old, new = self._base[index], torch.log_softmax(its, dim=-1)
                kls[index] = (old.exp() * (old - new)).sum(dim=-1)
                targets = torch.tensor(self._passages[index].tokens.ids[1:], device=old.device)[:, None]
                losses[index] = (old[:-1] - new[:-1]).gather(1, targets)[:, 0]
                agree[index] = (old.argmax(dim=-1) == new.argmax(dim=-1)).float()

        run(self._subject, self._passages, self._points, edit, consume=consume, step=self._step)
        kl, loss, same = (
            torch.cat([part[i] for i in range(len(self))]).double().cpu().numpy()
            for part in (kls, losses, agree)
        )
        return np.maximum(kl, 0.0), loss, same


@dataclass(frozen=True, slots=True)
class Matched:
    """How far an edit is scaled, and what its mean KL on neutral text then is, as a multiple of the target."""

    scale: float
    ratio: float

    @property
    def is_weaker(self) -> bool:
        """It does so much less to neutral text that to beat it proves little."""
        return self.ratio < _WEAKER


def matched_scale(
    neutral: NeutralText, target: float, edit_at: Callable[[float], Edit], steps: int
) -> Matched:
    """The scale at which a null edit's mean KL on neutral text comes nearest to `target` (above 0), in at most `steps` tries.

    KL grows about as the square of the scale, until it saturates.
    """
    scale, best = 1.0, Matched(1.0, math.inf)
    for _ in range(steps):
        ratio = neutral.mean_kl(edit_at(scale)) / target
        if abs(math.log(max(ratio, _TINY))) < abs(math.log(max(best.ratio, _TINY))):
            best = Matched(scale, ratio)
        if 1 / _ENOUGH < ratio < _ENOUGH:
            break
        scale = min(max(scale * min(max(ratio, 1 / 16), 16.0) ** -0.5, 1 / 64), 64.0)
    return best
