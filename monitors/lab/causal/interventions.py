"""The test prompts run with edits: doses, and the same edit at other layers and tokens."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import linregress, spearmanr
from torch import Tensor

from monitors.lab.causal.behaviour import Behaviour
from monitors.lab.causal.edits import Axes, Edit, push, to_high, to_low
from monitors.lab.causal.effects import Paired
from monitors.lab.causal.forward import Passage, edit_start, run
from monitors.lab.causal.plan import DOSES
from monitors.lab.dataset import Example
from monitors.lab.sections.causal import Dose, PositionEffect, SiteEffect
from monitors.lab.statistics import Floats, Ints
from monitors.lab.subject import Subject
from monitors.types import HookPoint

Rows = NDArray[np.bool_]
Where = Literal["scope", "last", "random"]
"""What is edited: all tokens in scope, the prompt's last one, or one before it."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompts:
    """Test prompts, what is run for each, and where edits begin."""

    subject: Subject
    behaviour: Behaviour
    examples: tuple[Example, ...]
    labels: Ints
    from_last: bool  # edits begin at the last token of the prompt, not at its first in scope
    exclude_first: int
    step: Callable[[int], None]
    seed: int = 0  # of the random positions
    passages: tuple[Passage, ...] = field(init=False)
    _drawn: tuple[int, ...] = field(init=False)  # a token of each prompt before its last, where it has one

    def __post_init__(self) -> None:
        passages, drawn = [], []
        rng = np.random.default_rng(self.seed)
        for owner, example in enumerate(self.examples):
            sequences = self.behaviour.sequences(self.subject, example)
            for tokens in sequences:
                start = edit_start(tokens, from_last=self.from_last, exclude_first=self.exclude_first)
                passages.append(Passage(tokens, start, owner=owner))
            last = sequences[0].num_prompt - 1
            drawn.append(int(rng.integers(min(self.exclude_first, last - 1), last)) if last else 0)
        object.__setattr__(self, "passages", tuple(passages))
        object.__setattr__(self, "_drawn", tuple(drawn))

    @property
    def positive(self) -> Rows:
        return np.asarray(self.labels == 1)

    @property
    def negative(self) -> Rows:
        return np.asarray(self.labels == 0)

    def measure(
        self, points: Sequence[HookPoint], edit: Edit | None, rows: Rows, *, where: Where = "scope"
    ) -> Floats:
        """Behaviour [n] of the prompts in `rows`, 0 elsewhere."""
        found = np.zeros(len(self.examples))

        def keep(owner: int, value: Tensor) -> None:
            found[owner] = float(value)

        self._run(points, edit, rows, keep, where=where)
        return found

    def attribution(self, axes: Axes, rows: Rows) -> Floats:
        """First-order estimate of what setting the projection to mu+ does: sum of (mu+ . vh - x . vh) vh . dB/dx. [n]."""
        (axis,) = axes
        found = np.zeros(len(self.examples))
        leaves: list[tuple[Tensor, Tensor]] = []

        def watch(point: HookPoint, x: Tensor, owner: Tensor) -> Tensor:
            leaves.append((x.detach().requires_grad_(), owner))
            return leaves[-1][0]

        values: list[Tensor] = []

        def keep(owner: int, value: Tensor) -> None:
            values.append(value)

        def after_batch() -> None:
            leaf, owner = leaves.pop()
            (gradient,) = torch.autograd.grad(torch.stack(values).sum(), [leaf])
            unit = axis.unit.to(leaf)
            each = (axis.high - leaf.detach() @ unit) * (gradient @ unit)
            np.add.at(found, owner.cpu().numpy(), each.double().cpu().numpy())
            values.clear()

        self._run((axis.point,), watch, rows, keep, after_batch=after_batch)
        return found

    def donors(self, axes: Axes, rows: Rows) -> dict[HookPoint, Tensor]:
        """The row of each prompt's last token, [n, d] by hook point; zeros for prompts that are not in `rows`."""
        width = self.subject.blocks.d_model
        found = {axis.point: torch.zeros(len(self.examples), width) for axis in axes}

        def watch(point: HookPoint, x: Tensor, owner: Tensor) -> Tensor:
            found[point][owner.cpu()] = x.detach().float().cpu()
            return x

        self._run([axis.point for axis in axes], watch, rows, lambda owner, value: None, where="last")
        return found

    def _run(
        self,
        points: Sequence[HookPoint],
        edit: Edit | None,
        rows: Rows,
        keep: Callable[[int, Tensor], None],
        *,
        where: Where = "scope",
        after_batch: Callable[[], None] | None = None,
    ) -> None:
        chosen = [self._edited(passage, where) for passage in self.passages if rows[passage.owner]]

        def consume(indices: Sequence[int], logits: Sequence[Tensor]) -> None:
            by_owner: dict[int, list[tuple[Passage, Tensor]]] = {}
            for index, its in zip(indices, logits, strict=True):
                by_owner.setdefault(chosen[index].owner, []).append((chosen[index], its))
            for owner, parts in by_owner.items():
                tokens = [passage.tokens for passage, _ in parts]
                keep(owner, self.behaviour.value([its for _, its in parts], tokens, self.examples[owner]))
            if after_batch is not None:
                after_batch()

        run(self.subject, chosen, points, edit, consume=consume, step=self.step, grad=after_batch is not None)

    def _edited(self, passage: Passage, where: Where) -> Passage:
        match where:
            case "scope":
                return passage
            case "last":
                at = passage.tokens.num_prompt - 1
            case "random":
                at = self._drawn[passage.owner]
            case _:
                assert_never(where)
        return replace(passage, start=at, stop=at + 1)


@dataclass(frozen=True, slots=True)
class DoseResponse:
    """Behaviour over pushes along the direction."""

    doses: tuple[Dose, ...]
    slope: float  # normalised effect per class gap
    spearman: float
    anti_steerable: float


def dose_response(prompts: Prompts, paired: Paired, axes: Axes) -> DoseResponse:
    """Push all prompts by each dose."""
    everyone = np.ones(len(paired.base), dtype=np.bool_)
    points = [axis.point for axis in axes]
    values = np.stack(
        [prompts.measure(points, push(axes, dose), everyone) if dose else paired.base for dose in DOSES]
    )
    changes = values - paired.base
    effects = [paired.effect(change, everyone) for change in changes]
    centred = np.array(DOSES) - np.mean(DOSES)
    slopes = centred @ changes  # [n], up to a positive factor
    wrong = np.sign(slopes) == -np.sign(paired.difference.value)
    means = [effect.value for effect in effects]
    moves = np.ptp(means) > 0
    return DoseResponse(
        doses=tuple(Dose(dose=dose, effect=effect) for dose, effect in zip(DOSES, effects, strict=True)),
        slope=float(linregress(DOSES, means).slope),
        spearman=float(spearmanr(DOSES, means).statistic) if moves else 0.0,
        anti_steerable=float(wrong.mean()),
    )


def site_effects(prompts: Prompts, paired: Paired, sites: Mapping[HookPoint, Axes]) -> tuple[SiteEffect, ...]:
    """Necessity and sufficiency of the same direction at other layers."""
    found = []
    for point, axes in sites.items():
        necessity, sufficiency = _both(prompts, paired, axes)
        found.append(SiteEffect(hook_point=str(point), necessity=necessity, sufficiency=sufficiency))
    return tuple(found)


def position_effects(prompts: Prompts, paired: Paired, axes: Axes) -> tuple[PositionEffect, ...]:
    """Necessity and sufficiency of the same edit of one token: the prompt's last, and one at random before it."""
    places: tuple[Literal["last", "random"], ...] = ("last", "random")
    found = []
    for where in places:
        necessity, sufficiency = _both(prompts, paired, axes, where)
        found.append(PositionEffect(position=where, necessity=necessity, sufficiency=sufficiency))
    return tuple(found)


def _both(prompts: Prompts, paired: Paired, axes: Axes, where: Where = "scope") -> tuple[float, float]:
    points = [axis.point for axis in axes]
    removed = prompts.measure(points, to_low(axes), prompts.positive, where=where)
    written = prompts.measure(points, to_high(axes), prompts.negative, where=where)
    necessity = paired.effect(paired.base - removed, prompts.positive)
    sufficiency = paired.effect(written - paired.base, prompts.negative)
    return necessity.value, sufficiency.value
