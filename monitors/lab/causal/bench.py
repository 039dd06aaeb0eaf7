"""The intervention part of the card: all edits of one monitor, and what they are compared with."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from monitors.lab.causal.behaviour import Behaviour
from monitors.lab.causal.downstream import Shifted, follow, later_points, moved
from monitors.lab.causal.edits import Axes, Writes, axes_of, random_writes, to_high, to_low
from monitors.lab.causal.effects import Paired
from monitors.lab.causal.faithfulness import faithfulness
from monitors.lab.causal.interventions import (
    DoseResponse,
    Prompts,
    dose_response,
    position_effects,
    site_effects,
)
from monitors.lab.causal.job import Verification, nearby
from monitors.lab.causal.neutral import NeutralText
from monitors.lab.causal.nulls import Both, Comparison
from monitors.lab.causal.plan import Sizes
from monitors.lab.causal.under_edit import Reader
from monitors.lab.causal.verdict import Measured
from monitors.lab.dataset import Example
from monitors.lab.sections.causal import Downstream, Specificity, Unrelated
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
        shams: Sequence[Writes],
        concepts: Sequence[Writes],
    ) -> None:
        """rows, labels: of `select`. shams, concepts: where sham monitors and the unrelated ones point."""
        self._job, self._axes, self._rows, self._labels = job, axes, rows, labels
        self._points = [axis.point for axis in axes]
        self._shams, self._concepts = shams, concepts
        chosen = _at_most(test, job.plan.num_per_class, job.seed)
        self._select = _at_most(select, job.plan.num_per_class, job.seed)
        neutral = job.data.neutral or tuple(e for e in select if e.label == 0)
        neutral = _some(neutral, job.plan.num_neutral, job.seed)
        last = max(self._points, key=lambda point: point.layer)
        self._later = later_points(last, len(job.subject.blocks.layers), job.plan.num_later)
        self._sites = self._neighbours()
        self._total = job.plan.num_passes(self._sizes(behaviour, chosen, len(neutral)))
        self._done = 0
        job.announce(self._total)
        self._prompts = Prompts(
            job.subject,
            behaviour,
            tuple(chosen),
            _labels(chosen),
            job.from_last,
            job.recipe.exclude_first,
            self._step,
            job.seed,
        )
        self._neutral = NeutralText(job.subject, neutral, self._points, job.recipe.exclude_first, self._step)

    def measure(self) -> tuple[Measured, DoseResponse | None]:
        prompts, axes, num = self._prompts, self._axes, len(self._prompts.examples)
        base = prompts.measure((), None, np.ones(num, dtype=np.bool_))
        groups = np.array([e.group for e in prompts.examples])
        paired = Paired(base, prompts.labels, groups, self._job.seed)
        difference = paired.difference
        if difference.low <= 0 <= difference.high:
            return Measured(difference, num_prompts=num), None
        comparison = Comparison(prompts, paired, axes, self._neutral)
        random = random_writes(
            {p: self._rows[p] for p in self._points}, self._labels, self._job.plan.num_random, self._job.seed
        )
        concepts = [comparison.null(writes) for writes in self._concepts]
        nulls = [*(comparison.null(writes) for writes in (*random, *self._shams)), *concepts]
        necessity, sufficiency = comparison.effects(nulls, random if self._job.plan.match_kl else ())
        doses = dose_response(prompts, paired, axes)
        downstream, unrelated = self._followed(paired, concepts)
        return Measured(
            difference,
            necessity,
            sufficiency,
            specificity=self._specificity(),
            faithfulness=faithfulness(prompts, paired, axes),
            sites=site_effects(prompts, paired, self._sites),
            positions=position_effects(prompts, paired, axes),
            downstream=downstream,
            unrelated=unrelated,
            anti_steerable=doses.anti_steerable,
            num_prompts=num,
        ), doses

    def _followed(
        self, paired: Paired, concepts: Sequence[Both]
    ) -> tuple[tuple[Downstream, ...], tuple[Unrelated, ...]]:
        """What later probes and other monitors make of the edits."""
        job = self._job
        if not self._reads:
            return (), ()
        monitors = (job.monitor, *job.unrelated) if job.unrelated else ()
        reader = Reader(job, self._points, self._later, monitors, self._step)
        removing, writing = to_low(self._axes), to_high(self._axes)
        natural, removed = (reader.read(self._select, edit) for edit in (None, removing))
        test = Shifted(*(reader.read(self._prompts.examples, edit) for edit in (None, removing, writing)))
        labels = _labels(self._select)
        downstream = [follow(point, (natural, removed), labels, test, paired) for point in self._later]
        multiples = moved(test, paired.labels) if monitors else ()
        unrelated = [
            Unrelated(monitor=monitor.name, necessity=necessity, sufficiency=sufficiency, moved=multiple)
            for monitor, (necessity, sufficiency), multiple in zip(
                job.unrelated, concepts, multiples, strict=True
            )
        ]
        return tuple(downstream), tuple(unrelated)

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
            job.from_last,
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

    @property
    def _reads(self) -> bool:
        return bool(self._later or self._job.unrelated)

    def _sizes(self, behaviour: Behaviour, chosen: Sequence[Example], num_neutral: int) -> Sizes:
        num_positive = sum(e.label == 1 for e in chosen)
        num_negative = len(chosen) - num_positive
        return Sizes(
            num_positive=num_positive,
            num_negative=num_negative,
            num_neutral=num_neutral,
            num_harmful=len(self._job.data.harmful),
            num_select=len(self._select) if self._reads else 0,
            num_differentiated=num_negative if len(self._axes) == 1 and behaviour.is_differentiable else 0,
            num_sequences=behaviour.num_sequences,
            num_sites=len(self._sites),
            num_unrelated=len(self._job.unrelated),
        )

    def _step(self, num: int) -> None:
        self._done += num
        self._job.intervening(min(self._done, self._total), self._total)


def _labels(examples: Sequence[Example]) -> Ints:
    return np.array([e.label for e in examples], dtype=np.int64)


def _at_most(examples: Sequence[Example], num_per_class: int, seed: int) -> list[Example]:
    found: list[Example] = []
    for label in (1, 0):
        found += _some([e for e in examples if e.label == label], num_per_class, seed)
    return found


def _some(examples: Sequence[Example], num: int, seed: int) -> tuple[Example, ...]:
    order = np.random.default_rng(seed).permutation(len(examples))[:num]
    return tuple(examples[int(i)] for i in sorted(order))
