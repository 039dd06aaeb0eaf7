"""The intervention part of the card: all edits of one monitor, and the null edits beside them."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from monitors.base import Monitor
from monitors.lab.causal.behaviour import Behaviour
from monitors.lab.causal.directions import directions
from monitors.lab.causal.edits import (
    Axes,
    Edit,
    Writes,
    axes_of,
    null,
    random_writes,
    to_high,
    to_low,
    wrong_sign,
)
from monitors.lab.causal.effects import Paired, holm, p_value
from monitors.lab.causal.interventions import (
    DoseResponse,
    Prompts,
    dose_response,
    faithfulness,
    site_effects,
)
from monitors.lab.causal.job import Verification, nearby
from monitors.lab.causal.neutral import NeutralText, matched_scale
from monitors.lab.causal.plan import MATCHING_STEPS
from monitors.lab.causal.verdict import Measured
from monitors.lab.dataset import Example
from monitors.lab.sections.base import Interval
from monitors.lab.sections.causal import Effect, Specificity
from monitors.lab.statistics import Ints
from monitors.types import HookPoint


class Bench:
    """The intervention part."""

    def __init__(
        self,
        job: Verification,
        behaviour: Behaviour,
        axes: Axes,
        *,
        select: Sequence[Example],
        test: Sequence[Example],
        rows: Mapping[HookPoint, Tensor],
        labels: Ints,
        sham_monitors: Sequence[Monitor],
    ) -> None:
        self._job, self._axes, self._rows, self._labels = job, axes, rows, labels
        chosen = _at_most(test, job.plan.num_per_class, job.seed)
        neutral = job.data.neutral or tuple(e for e in select if e.label == 0)
        neutral = _some(neutral, job.plan.num_neutral, job.seed)
        self._points = [axis.point for axis in axes]
        self._sites = self._neighbours()
        num_positive = sum(e.label == 1 for e in chosen)
        total = job.plan.num_passes(
            num_positive, len(chosen) - num_positive, len(neutral), behaviour.num_sequences, len(self._sites)
        ) + 3 * len(job.data.harmful)
        job.announce(total)
        done = 0

        def step(num: int) -> None:
            nonlocal done
            done += num
            job.intervening(min(done, total), total)

        exclude_first = job.recipe.exclude_first
        from_last = job.recipe.phase == "response" or job.pooling == "last"
        self._prompts = Prompts(
            job.subject,
            behaviour,
            tuple(chosen),
            np.array([e.label for e in chosen], dtype=np.int64),
            from_last,
            exclude_first,
            step,
        )
        self._neutral = NeutralText(job.subject, neutral, self._points, exclude_first, step)
        self._step, self._from_last = step, from_last
        by_seed = random_writes({p: rows[p] for p in self._points}, labels, job.plan.num_random, job.seed)
        positives = {p: rows[p][torch.tensor(labels == 1)] for p in self._points}
        self._random: list[Writes] = list(by_seed)
        self._shams: list[Writes] = [
            directions(sham, positives) for sham in sham_monitors[: job.plan.num_sham_edits]
        ]

    def measure(self) -> tuple[Measured, DoseResponse | None]:
        prompts, axes = self._prompts, self._axes
        everyone = np.ones(len(prompts.examples), dtype=np.bool_)
        groups = np.array([e.group for e in prompts.examples])
        base = prompts.measure((), None, everyone)
        paired = Paired(base, prompts.labels, groups, self._job.seed)
        difference = paired.difference
        if difference.low <= 0 <= difference.high:
            return Measured(difference), None
        necessity, sufficiency = self._effects(paired)
        doses = dose_response(prompts, paired, axes)
        return Measured(
            difference,
            necessity,
            sufficiency,
            self._specificity(),
            faithfulness(prompts, paired, axes),
            site_effects(prompts, paired, self._sites),
            doses.anti_steerable,
        ), doses

    def _effects(self, paired: Paired) -> tuple[tuple[Effect, ...], tuple[Effect, ...]]:
        """Necessity and sufficiency, once per matching of the nulls."""
        found: dict[bool, list[Effect]] = {False: [], True: []}
        own = {
            high: self._effect(paired, to_high(self._axes) if high else to_low(self._axes), high=high)
            for high in found
        }
        opposite = {high: self._null(paired, wrong_sign(self._axes), high=high) for high in found}
        by_norm = {
            high: [self._null(paired, writes, high=high) for writes in (*self._random, *self._shams)]
            for high in found
        }
        matchings = [("norm", by_norm)]
        if self._job.plan.match_kl:
            by_kl = {}
            for high in found:
                target = self._neutral.mean_kl(to_high(self._axes) if high else to_low(self._axes))
                by_kl[high] = [self._matched(paired, writes, target, high=high) for writes in self._random]
            matchings.append(("kl", by_kl))
        for matched_by, nulls in matchings:
            corrected = holm([p_value(own[high].value, nulls[high]) for high in found])
            for high, p in zip(found, corrected, strict=True):
                low_null, high_null = np.percentile(nulls[high], [2.5, 97.5])
                found[high].append(
                    Effect(
                        effect=own[high],
                        null_low=float(low_null),
                        null_high=float(high_null),
                        num_nulls=len(nulls[high]),
                        p_value=p,
                        matched_by="norm" if matched_by == "norm" else "kl",
                        wrong_sign=opposite[high],
                    )
                )
        return tuple(found[False]), tuple(found[True])

    def _effect(self, paired: Paired, edit: Edit, *, high: bool) -> Interval:
        """Of removing (from positives) or of writing (into negatives), each positive if behaviour moves as expected."""
        rows = self._prompts.negative if high else self._prompts.positive
        change = self._prompts.measure(self._points, edit, rows) - paired.base
        return paired.effect(change if high else -change, rows)

    def _null(self, paired: Paired, writes: Writes, *, high: bool, scale: float = 1.0) -> float:
        return self._effect(paired, null(self._axes, writes, high=high, scale=scale), high=high).value

    def _matched(self, paired: Paired, writes: Writes, target: float, *, high: bool) -> float:
        scale = matched_scale(
            self._neutral,
            target,
            lambda scale: null(self._axes, writes, high=high, scale=scale),
            MATCHING_STEPS,
        )
        return self._null(paired, writes, high=high, scale=scale)

    def _specificity(self) -> Specificity:
        # Neutral text lies in one class or near it: what must not matter is to put it at that class's mean.
        both = (self._neutral.specificity(edit(self._axes)) for edit in (to_low, to_high))
        found = min(both, key=lambda one: one.mean_kl)
        job = self._job
        if not job.data.harmful or job.refusal is None:
            return found
        harmful = Prompts(
            job.subject,
            job.refusal,
            job.data.harmful,
            np.ones(len(job.data.harmful), dtype=np.int64),
            self._from_last,
            job.recipe.exclude_first,
            self._step,
        )
        base = harmful.measure((), None, harmful.positive)
        groups = np.array([e.group for e in job.data.harmful])
        changes = [
            Paired(
                harmful.measure(self._points, edit, harmful.positive) - base, harmful.labels, groups, job.seed
            ).mean
            for edit in (to_low(self._axes), to_high(self._axes))
        ]
        return found.model_copy(update={"safety_change": min(changes, key=lambda change: change.value)})

    def _neighbours(self) -> dict[HookPoint, Axes]:
        """The same direction at layers nearby. Only for monitors of one hook point."""
        if len(self._axes) > 1:
            return {}
        (own,) = self._axes
        return {
            point: axes_of({point: own.unit}, self._rows, self._labels)
            for point in nearby(own.point, self._job)
        }


def _at_most(examples: Sequence[Example], num_per_class: int, seed: int) -> list[Example]:
    found: list[Example] = []
    for label in (1, 0):
        found += _some([e for e in examples if e.label == label], num_per_class, seed)
    return found


def _some(examples: Sequence[Example], num: int, seed: int) -> tuple[Example, ...]:
    order = np.random.default_rng(seed).permutation(len(examples))[:num]
    return tuple(examples[int(i)] for i in sorted(order))
