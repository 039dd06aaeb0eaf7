"""The whole card of a monitor: reading, then interventions, then the verdict."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from monitors.lab.activations import collect
from monitors.lab.baselines import folds
from monitors.lab.causal.bench import Bench
from monitors.lab.causal.directions import directions
from monitors.lab.causal.edits import Writes, axes_of, concept_writes
from monitors.lab.causal.job import Verification, nearby
from monitors.lab.causal.reading import Split, read, shams
from monitors.lab.causal.verdict import judge
from monitors.lab.dataset import Example, dataset_digest
from monitors.lab.pooling import Pooled
from monitors.lab.scoring import Scorer
from monitors.lab.sections.causal import CausalSection, DataPart
from monitors.lab.statistics import Floats
from monitors.types import HookPoint

MIN_PER_CLASS = 8  # test prompts


def verify(job: Verification, cache: Path, weights_sha256: str) -> CausalSection:
    """Measure and judge. The same seed gives the same section.

    Raises ValueError for data that are too few or unlabelled.
    """
    select, test = _split(job)
    points = _points(job)
    pooled = Split(
        *(Pooled(collect(job.subject, part, points, cache, progress=job.reading)) for part in (select, test))
    )
    labels = pooled.select.acts.labels
    rows = {point: torch.tensor(_rows(job, pooled.select, point)).float() for point in points}
    positives = {point: its[torch.tensor(labels == 1)] for point, its in rows.items()}
    own = directions(job.monitor, positives)
    axes = axes_of(own, rows, labels)
    sham_monitors = shams(job.recipe, pooled, job.plan.num_shams, job.seed)
    masked, paraphrased = (
        Pooled(collect(job.subject, part, points, cache, progress=job.reading)) if part else None
        for part in (job.data.masked, job.data.paraphrased)
    )
    reading = read(
        job.monitor,
        job.recipe,
        pooled,
        sham_monitors,
        statistic=job.reading_statistic,
        num_random_draws=job.plan.num_random_reads,
        masked=masked,
        paraphrased=paraphrased,
        seed=job.seed,
    )
    measured = found = None
    if job.behaviour is not None:
        bench = Bench(
            job,
            job.behaviour,
            axes,
            select=select,
            test=test,
            rows=rows,
            labels=labels,
            shams=[directions(sham, positives) for sham in sham_monitors[: job.plan.num_sham_edits]],
            concepts=_concepts(job, pooled.select, {point: rows[point] for point in own}),
        )
        measured, found = bench.measure()
    judgement = judge(reading, measured)
    return CausalSection(
        weights_sha256=weights_sha256,
        data_sha256=dataset_digest(job.data.test),
        num_examples=len(test),
        seed=job.seed,
        mode=job.plan.mode,
        others=tuple(
            DataPart(name=name, num_examples=len(part), data_sha256=dataset_digest(part))
            for name, part in job.data.others.items()
        ),
        num_prompts=measured.num_prompts if measured else None,
        phase=job.recipe.phase,
        behaviour=job.behaviour.name if job.behaviour else None,
        hook_point=", ".join(str(axis.point) for axis in axes),
        gap=float(np.mean([axis.gap for axis in axes])),
        read=reading,
        necessity=measured.necessity if measured else (),
        sufficiency=measured.sufficiency if measured else (),
        doses=found.doses if found else (),
        dose_slope=found.slope if found else None,
        dose_spearman=found.spearman if found else None,
        anti_steerable=found.anti_steerable if found else None,
        specificity=measured.specificity if measured else None,
        faithfulness=measured.faithfulness if measured else None,
        sites=measured.sites if measured else (),
        positions=measured.positions if measured else (),
        downstream=measured.downstream if measured else (),
        unrelated=measured.unrelated if measured else (),
        flags=judgement.flags,
        verdict=judgement.verdict,
        reasons=judgement.reasons,
    )


def _split(job: Verification) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Examples to fit on, and to test on; groups whole. Raises ValueError if that leaves too few."""
    examples = job.data.test
    for part in (examples, job.data.train, job.data.masked, job.data.paraphrased):
        if unknown := sum(e.label is None for e in part):
            raise ValueError(f"{unknown} of {len(part)} examples have no label; label them or leave them out")
    select, test = job.data.train, examples
    if not select:
        labels = np.array([e.label for e in examples], dtype=np.int64)
        try:
            half = folds(labels, np.array([e.group for e in examples]), 2, job.seed)
        except ValueError as error:
            raise ValueError(
                "the data can't be halved by group, to choose on one half and test on the other: each class needs two "
                "groups at least; give more data, or --train"
            ) from error
        select = tuple(e for e, fold in zip(examples, half, strict=True) if fold == 0)
        test = tuple(e for e, fold in zip(examples, half, strict=True) if fold == 1)
    for part, what in ((select, "to choose on"), (test, "to test on")):
        for label, name in ((1, "positive"), (0, "negative")):
            if (num := sum(e.label == label for e in part)) < MIN_PER_CLASS:
                raise ValueError(
                    f"{num} {name} examples {what}; needs {MIN_PER_CLASS} at least: give more data"
                )
    return tuple(select), tuple(test)


def _points(job: Verification) -> tuple[HookPoint, ...]:
    """The first block's output, what the monitors read, and the places around."""
    own = job.monitor.hook_points
    around = nearby(own[0], job) if len(own) == 1 else ()
    others = (point for monitor in job.unrelated for point in monitor.hook_points)
    return tuple(dict.fromkeys((HookPoint(0), *own, *around, *others)))


def _concepts(job: Verification, select: Pooled, rows: Mapping[HookPoint, Tensor]) -> list[Writes]:
    """Where the scores of each unrelated monitor vary. Raises ValueError for one whose scores don't."""
    if not job.unrelated or job.behaviour is None:
        return []
    scores = Scorer(job.unrelated).statistic(select.acts, job.recipe.phase, job.reading_statistic)
    found = []
    for monitor, column in zip(job.unrelated, scores.T, strict=True):
        writes = concept_writes(column, rows, select.acts.labels)
        if writes is None:
            raise ValueError(
                f"monitor {monitor.name!r} says the same of all examples in the {job.recipe.phase} (or fails on some), so it has "
                "no direction to compare with: leave it out of --unrelated"
            )
        found.append(writes)
    return found


def _rows(job: Verification, pooled: Pooled, point: HookPoint) -> Floats:
    return pooled.rows(point, job.recipe.phase, job.recipe.exclude_first, job.pooling)
