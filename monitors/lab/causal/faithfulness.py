"""Does an edit do what the model itself does? Against the patch of the whole row, natural rows, and the gradient."""

import numpy as np
import torch
from torch import Tensor

from monitors.lab.causal.edits import Axes, Edit, patch, to_high, to_low
from monitors.lab.causal.effects import Paired
from monitors.lab.causal.interventions import Prompts, Rows
from monitors.lab.sections.causal import Faithfulness
from monitors.lab.statistics import Floats, Ints
from monitors.types import HookPoint

_LEAST_FULL_EFFECT = 0.1  # below it, the share of a full patch's effect means nothing


def faithfulness(prompts: Prompts, paired: Paired, axes: Axes) -> Faithfulness | None:
    """Patch negatives from positives, along the direction and in full, at the last token; how natural edits are.

    None if even the full patch does next to nothing at that place, so that there is nothing to compare with.
    """
    points = [axis.point for axis in axes]
    givers = torch.tensor(_givers(prompts))
    donors = {point: its[givers] for point, its in prompts.donors(axes, prompts.positive).items()}
    along, full = (
        paired.effect(
            prompts.measure(points, patch(axes, donors, whole=whole), prompts.negative, where="last")
            - paired.base,
            prompts.negative,
        ).value
        for whole in (False, True)
    )
    natural = _Watched(None, axes)
    prompts.measure(points, natural, np.ones(len(prompts.examples), dtype=np.bool_))
    raised, lowered = _Watched(to_high(axes), axes), _Watched(to_low(axes), axes)
    written = prompts.measure(points, raised, prompts.negative)
    prompts.measure(points, lowered, prompts.positive)
    if abs(full) < _LEAST_FULL_EFFECT:
        return None
    agreement = None
    if len(axes) == 1 and prompts.behaviour.is_differentiable:
        estimate = prompts.attribution(axes, prompts.negative)
        change = written - paired.base
        agreement = float((np.sign(estimate) == np.sign(change))[prompts.negative].mean())
    return Faithfulness(
        patch_ratio=along / full,
        on_distribution=min(_share_within(edited, natural) for edited in (raised, lowered)),
        norm_ratio=max(_norm_ratio(edited, natural, prompts.positive) for edited in (raised, lowered)),
        gradient_agreement=agreement,
    )


def _givers(prompts: Prompts) -> Ints:
    """The positive prompt that each is patched from, [n]: one of its own group (a contrast pair), else any, in turn."""
    positive = np.flatnonzero(prompts.positive)
    of_group = {prompts.examples[i].group: i for i in positive.tolist()}
    any_other = np.resize(positive, len(prompts.examples)).tolist()
    return np.array(
        [of_group.get(e.group, other) for e, other in zip(prompts.examples, any_other, strict=True)],
        dtype=np.int64,
    )


class _Watched:
    """An edit that remembers the projections and the lengths of the rows that it leaves, and whose they are."""

    def __init__(self, edit: Edit | None, axes: Axes) -> None:
        self._edit, self._units = edit, {axis.point: axis.unit for axis in axes}
        self.seen: dict[HookPoint, list[tuple[Tensor, Tensor, Tensor]]] = {}

    def __call__(self, point: HookPoint, x: Tensor, owner: Tensor) -> Tensor:
        changed = x if self._edit is None else self._edit(point, x, owner)
        along, norm = changed @ self._units[point].to(x), torch.linalg.vector_norm(changed, dim=1)
        self.seen.setdefault(point, []).append((along.cpu(), norm.double().cpu(), owner.cpu()))
        return changed

    def at(self, point: HookPoint) -> tuple[Floats, Floats, Ints]:
        """Projection, length and owner of each row, [n]."""
        along, norm, owner = (torch.cat(parts).numpy() for parts in zip(*self.seen[point], strict=True))
        return along, norm, owner


def _share_within(edited: _Watched, natural: _Watched) -> float:
    """The share of projections within the natural 1 to 99 %."""
    inside = []
    for point in edited.seen:
        low, high = np.percentile(natural.at(point)[0], [1, 99])
        own = edited.at(point)[0]
        inside.append((own >= low) & (own <= high))
    return float(np.concatenate(inside).mean())


def _norm_ratio(edited: _Watched, natural: _Watched, positive: Rows) -> float:
    """Mean length over the mean natural length in that class whose rows are longer; the largest over hook points."""
    ratios = []
    for point in edited.seen:
        _, norms, owners = natural.at(point)
        longer = max(norms[positive[owners] == one].mean() for one in (False, True))
        ratios.append(float(edited.at(point)[1].mean() / longer))
    return max(ratios)
