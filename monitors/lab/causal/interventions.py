"""Necessity, sufficiency, doses, faithfulness and site: the test prompts run with edits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import linregress, spearmanr
from torch import Tensor

from monitors.lab.causal.behaviour import Behaviour
from monitors.lab.causal.edits import Axes, Edit, patch, push, to_high, to_low
from monitors.lab.causal.effects import Paired
from monitors.lab.causal.forward import Passage, run
from monitors.lab.causal.plan import DOSES
from monitors.lab.dataset import Example
from monitors.lab.sections.causal import Dose, Faithfulness, SiteEffect
from monitors.lab.statistics import Floats, Ints
from monitors.lab.subject import Subject
from monitors.types import HookPoint

Rows = NDArray[np.bool_]

_LEAST_FULL_EFFECT = 0.1  # below it, the share of a full patch's effect means nothing


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
    passages: tuple[Passage, ...] = field(init=False)

    def __post_init__(self) -> None:
        passages = []
        for owner, example in enumerate(self.examples):
            for tokens in self.behaviour.sequences(self.subject, example):
                last = tokens.num_prompt - 1
                start = last if self.from_last else min(self.exclude_first, last)
                passages.append(Passage(tokens, start, owner=owner))
        object.__setattr__(self, "passages", tuple(passages))

    @property
    def positive(self) -> Rows:
        return np.asarray(self.labels == 1)

    @property
    def negative(self) -> Rows:
        return np.asarray(self.labels == 0)

    def measure(
        self, points: Sequence[HookPoint], edit: Edit | None, rows: Rows, *, last_only: bool = False
    ) -> Floats:
        """Behaviour [n] of the prompts in `rows`, 0 elsewhere. `last_only`: edit the last token of the prompt alone."""
        found = np.zeros(len(self.examples))

        def keep(owner: int, value: Tensor) -> None:
            found[owner] = float(value)

        self._run(points, edit, rows, keep, last_only=last_only)
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

        self._run([axis.point for axis in axes], watch, rows, lambda owner, value: None, last_only=True)
        return found

    def _run(
        self,
        points: Sequence[HookPoint],
        edit: Edit | None,
        rows: Rows,
        keep: Callable[[int, Tensor], None],
        *,
        last_only: bool = False,
        after_batch: Callable[[], None] | None = None,
    ) -> None:
        chosen = [passage for passage in self.passages if rows[passage.owner]]
        if last_only:
            chosen = [replace(p, start=p.tokens.num_prompt - 1, stop=p.tokens.num_prompt) for p in chosen]

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


def faithfulness(prompts: Prompts, paired: Paired, axes: Axes) -> Faithfulness | None:
    """Patch negatives from positives, along the direction and in full, at the last token; how natural edits are.

    None if even the full patch does next to nothing at that place, so that there is nothing to compare with.
    """
    points = [axis.point for axis in axes]
    negative = np.flatnonzero(prompts.negative)
    positive = np.flatnonzero(prompts.positive)
    rows = prompts.donors(axes, prompts.positive)
    giver = torch.zeros(len(prompts.examples), dtype=torch.int64)
    giver[negative] = torch.tensor(np.resize(positive, len(negative)))
    donors = {point: its[giver] for point, its in rows.items()}
    along, full = (
        paired.effect(
            prompts.measure(points, patch(axes, donors, whole=whole), prompts.negative, last_only=True)
            - paired.base,
            prompts.negative,
        ).value
        for whole in (False, True)
    )
    natural = _Watched(None, axes)
    prompts.measure(points, natural, np.ones(len(prompts.examples), dtype=np.bool_))
    edited = _Watched(to_high(axes), axes)
    written = prompts.measure(points, edited, prompts.negative)
    if abs(full) < _LEAST_FULL_EFFECT:
        return None
    agreement = None
    if len(axes) == 1 and prompts.behaviour.is_differentiable:
        estimate = prompts.attribution(axes, prompts.negative)
        change = written - paired.base
        agreement = float((np.sign(estimate) == np.sign(change))[prompts.negative].mean())
    return Faithfulness(
        patch_ratio=along / full,
        on_distribution=edited.share_within(natural),
        norm_ratio=edited.norm_ratio,
        gradient_agreement=agreement,
    )


class _Watched:
    """An edit that remembers the projections that it leaves and how much longer it makes rows."""

    def __init__(self, edit: Edit | None, axes: Axes) -> None:
        self._edit, self._units = edit, {axis.point: axis.unit for axis in axes}
        self.projections: dict[HookPoint, list[Tensor]] = {}
        self.norm_ratio = 1.0

    def __call__(self, point: HookPoint, x: Tensor, owner: Tensor) -> Tensor:
        changed = x if self._edit is None else self._edit(point, x, owner)
        self.projections.setdefault(point, []).append((changed @ self._units[point].to(x)).cpu())
        ratios = torch.linalg.vector_norm(changed, dim=1) / torch.linalg.vector_norm(x, dim=1)
        self.norm_ratio = max(self.norm_ratio, float(ratios.nan_to_num(nan=1.0, posinf=1.0).max()))
        return changed

    def share_within(self, natural: "_Watched") -> float:
        """The share of projections within the natural 1 to 99 %."""
        inside, total = 0, 0
        for point, parts in self.projections.items():
            own, usual = torch.cat(parts).numpy(), torch.cat(natural.projections[point]).numpy()
            low, high = np.percentile(usual, [1, 99])
            inside, total = inside + int(((own >= low) & (own <= high)).sum()), total + len(own)
        return inside / total


def site_effects(prompts: Prompts, paired: Paired, sites: Mapping[HookPoint, Axes]) -> tuple[SiteEffect, ...]:
    """Necessity and sufficiency of the same direction at other layers."""
    found = []
    for point, axes in sites.items():
        removed = prompts.measure([point], to_low(axes), prompts.positive)
        written = prompts.measure([point], to_high(axes), prompts.negative)
        found.append(
            SiteEffect(
                hook_point=str(point),
                necessity=paired.effect(paired.base - removed, prompts.positive).value,
                sufficiency=paired.effect(written - paired.base, prompts.negative).value,
            )
        )
    return tuple(found)
