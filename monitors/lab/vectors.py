"""Steering vectors from labelled examples: CAA, mass-mean, ACE; and which layer and strength move behaviour."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monitors.aggregate import AggregatorSpec
from monitors.base import Monitor
from monitors.lab.activations import Progress, collect, no_progress
from monitors.lab.baselines import folds
from monitors.lab.causal.behaviour import Behaviour
from monitors.lab.causal.edits import Edit
from monitors.lab.causal.effects import Paired
from monitors.lab.causal.interventions import Prompts
from monitors.lab.causal.neutral import NeutralText
from monitors.lab.causal.verdict import MAX_MEAN_KL
from monitors.lab.dataset import Example
from monitors.lab.fitting import check_labels
from monitors.lab.pooling import Pooled, Pooling
from monitors.lab.sections.base import Interval, Phase
from monitors.lab.statistics import Floats, Ints
from monitors.lab.subject import Subject
from monitors.linear import Linear
from monitors.steering import MAX_NORM_RATIO, Direction, SteeringVector, steer
from monitors.types import HookPoint

Method = Literal["caa", "mass_mean", "ace"]
_NUM_NEUTRAL = 16
STRENGTHS = (0.5, 1.0, 1.5, 2.0)  # in class gaps: the vector is as long as the gap


def pooling_of(method: Method) -> Pooling:
    """CAA reads the answer token alone, the others average over the phase."""
    return "last" if method == "caa" else "mean"


def fit_vector(
    name: str,
    method: Method,
    pooled: Pooled,
    points: Sequence[HookPoint],
    phase: Phase,
    *,
    pooling: Pooling | None = None,
    exclude_first: int = 0,
    max_norm_ratio: float = MAX_NORM_RATIO,
) -> SteeringVector:
    """v = mu+ - mu- at each hook point; `pooling` other than the method's own compares other rows.

    caa: at the last token of contrast pairs, which are the examples of one group: the mean of the pairs' differences, so
    that what a pair has in common cancels (2312.06681); if a group lacks a class, of the classes. mass_mean: of the mean
    rows over the phase. ace: the same, as `affine` with mu- . vh (2411.09003).
    Raises ValueError if the classes have the same mean.
    """
    labels, groups = pooled.acts.labels, pooled.acts.groups
    directions = []
    for point in points:
        rows = pooled.rows(point, phase, exclude_first, pooling or pooling_of(method))
        low, high = _paired_means(rows, labels, groups) if method == "caa" else _means(rows, labels)
        vector = torch.tensor(high - low).float()
        if not vector.any():
            raise ValueError(
                f"{point}: the classes have the same mean, so there is no direction between them"
            )
        direction = Direction(point, vector)
        if method == "ace":
            unit = direction.unit.double().numpy()
            direction = replace(direction, offset=float(low @ unit), gap=float((high - low) @ unit))
        directions.append(direction)
    gap = float(np.mean([float(torch.linalg.vector_norm(d.vector)) for d in directions]))
    return SteeringVector(
        name, "affine" if method == "ace" else "add", tuple(directions), max_norm_ratio, gap
    )


def probe_of(vector: SteeringVector, pooling: Pooling) -> Monitor:
    """The vector's direction as a monitor, to be read and verified like one."""
    weight = torch.stack([direction.unit for direction in vector.directions])
    points = tuple(direction.hook_point for direction in vector.directions)
    return Monitor(
        "probe",
        Linear(points, weight, torch.zeros(1)),
        AggregatorSpec("last" if pooling == "last" else "mean"),
    )


def edit_of(vector: SteeringVector, strength: float) -> Edit:
    """The edit that the server would make, norm cap included."""
    by_point: Mapping[HookPoint, Direction] = {d.hook_point: d for d in vector.directions}

    def edit(point: HookPoint, x: Tensor, owner: Tensor) -> Tensor:
        strengths = torch.full((len(x), 1), strength, device=x.device)
        steered, _ = steer(x, vector, by_point[point].to(x.device), strengths)
        return steered

    return edit


@dataclass(frozen=True, slots=True, eq=False)
class Swept:
    """One vector at one strength, on held-out negatives."""

    vector: SteeringVector
    strength: float
    effect: Interval  # of steering negatives, as a share of B(D+) - B(D-)
    mean_kl: float  # on neutral text, nats per token


def sweep(
    vectors: Sequence[SteeringVector],
    subject: Subject,
    behaviour: Behaviour,
    examples: tuple[Example, ...],
    neutral: Sequence[Example],
    *,
    from_last: bool,
    exclude_first: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Swept]:
    """Each vector at each strength. Raises ValueError if behaviour does not differ between the classes."""
    labels = np.array([e.label for e in examples], dtype=np.int64)
    num_negative = int((labels == 0).sum())
    per_pass = num_negative * behaviour.num_sequences + len(neutral)
    total = len(examples) * behaviour.num_sequences + len(vectors) * (
        len(neutral) + len(STRENGTHS) * per_pass
    )
    done = 0

    def step(num: int) -> None:
        nonlocal done
        done += num
        progress(min(done, total), total)

    prompts = Prompts(subject, behaviour, examples, labels, from_last, exclude_first, step)
    everyone = np.ones(len(examples), dtype=np.bool_)
    base = prompts.measure((), None, everyone)
    paired = Paired(base, labels, np.array([e.group for e in examples]), seed)
    difference = paired.difference
    if difference.low <= 0 <= difference.high:
        raise ValueError(
            f"{behaviour.name} does not differ between the classes on held-out examples ({difference.value:.2f}, "
            f"{difference.low:.2f} to {difference.high:.2f}), so no strength can be chosen by it"
        )
    found = []
    for vector in vectors:
        points = [direction.hook_point for direction in vector.directions]
        text = NeutralText(subject, neutral, points, exclude_first, step)
        for strength in STRENGTHS:
            edit = edit_of(vector, strength)
            change = prompts.measure(points, edit, prompts.negative) - base
            found.append(Swept(vector, strength, paired.effect(change, prompts.negative), text.mean_kl(edit)))
    return found


def best(swept: Sequence[Swept]) -> Swept:
    """The largest effect up to the whole difference, among those that leave neutral text alone if there are any.

    Beyond 1 it overshoots the other class; of equal effects the gentlest.
    """
    gentle = [one for one in swept if one.mean_kl <= MAX_MEAN_KL] or list(swept)
    return max(gentle, key=lambda one: (round(min(one.effect.value, 1.0), 3), -one.mean_kl))


@dataclass(frozen=True, slots=True, eq=False)
class VectorSearch:
    """What is fitted, and by what it is chosen."""

    name: str
    method: Method
    hook_points: tuple[HookPoint, ...]  # with a behaviour one of these is kept; without, all are steered
    phase: Phase
    behaviour: Behaviour | None = None
    pooling: Pooling | None = None  # None: the method's own
    exclude_first: int = 0
    max_norm_ratio: float = MAX_NORM_RATIO
    seed: int = 0


def search(
    wanted: VectorSearch,
    subject: Subject,
    examples: tuple[Example, ...],
    neutral: tuple[Example, ...],
    cache: Path,
    *,
    reading: Progress = no_progress,
    sweeping: Progress = no_progress,
) -> tuple[SteeringVector, list[Swept]]:
    """Choose the hook point on half of the groups, then fit on all examples. Without a behaviour, only fit.

    Raises ValueError for data that can't be learned from.
    """
    check_labels(examples)

    def fitted(part: tuple[Example, ...], points: tuple[HookPoint, ...]) -> SteeringVector:
        acts = collect(subject, part, wanted.hook_points, cache, progress=reading)
        return fit_vector(
            wanted.name,
            wanted.method,
            Pooled(acts),
            points,
            wanted.phase,
            pooling=wanted.pooling,
            exclude_first=wanted.exclude_first,
            max_norm_ratio=wanted.max_norm_ratio,
        )

    if wanted.behaviour is None:
        return fitted(examples, wanted.hook_points), []
    labels = np.array([e.label for e in examples], dtype=np.int64)
    half = folds(labels, np.array([e.group for e in examples]), 2, wanted.seed)
    select, held = (tuple(e for e, f in zip(examples, half, strict=True) if f == side) for side in (0, 1))
    swept = sweep(
        [fitted(select, (point,)) for point in wanted.hook_points],
        subject,
        wanted.behaviour,
        held,
        (neutral or tuple(e for e in select if e.label == 0))[:_NUM_NEUTRAL],
        from_last=wanted.phase == "response" or (wanted.pooling or pooling_of(wanted.method)) == "last",
        exclude_first=wanted.exclude_first,
        seed=wanted.seed,
        progress=sweeping,
    )
    kept = tuple(direction.hook_point for direction in best(swept).vector.directions)
    return fitted(examples, kept), swept


def _means(rows: Floats, labels: Ints) -> tuple[Floats, Floats]:
    low, high = (np.asarray(rows[labels == label].mean(axis=0), dtype=np.float64) for label in (0, 1))
    return low, high


def _paired_means(rows: Floats, labels: Ints, groups: NDArray[np.str_]) -> tuple[Floats, Floats]:
    """Of the groups' means, each group weighing the same; of the classes if a group lacks one."""
    members = [groups == group for group in np.unique(groups)]
    if not all(0 < labels[own].sum() < own.sum() for own in members):
        return _means(rows, labels)
    parts = [_means(rows[own], labels[own]) for own in members]
    low, high = (np.mean([part[side] for part in parts], axis=0) for side in (0, 1))
    return low, high
