"""Necessity and sufficiency, beside what null edits do: equally large, or equally hard on neutral text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from monitors.lab.causal.edits import Axes, Edit, Writes, null, to_high, to_low, wrong_sign
from monitors.lab.causal.effects import Paired, holm, p_value
from monitors.lab.causal.interventions import Prompts
from monitors.lab.causal.neutral import Matched, NeutralText, matched_scale
from monitors.lab.causal.plan import MATCHING_STEPS
from monitors.lab.sections.base import Interval
from monitors.lab.sections.causal import Effect

_LEAST_KL = 1e-9  # nats; below it there is nothing to match

Both = tuple[float, float]
"""Necessity and sufficiency."""


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """One monitor's edits of the test prompts, and other edits of the same prompts."""

    prompts: Prompts
    paired: Paired
    axes: Axes
    neutral: NeutralText

    def effects(self, nulls: Sequence[Both], rescaled: Sequence[Writes]) -> tuple[tuple[Effect, ...], ...]:
        """Necessity, then sufficiency, each once per matching. nulls: of equal size; rescaled: what is to be matched by KL."""
        own = (self._effect(to_low(self.axes), high=False), self._effect(to_high(self.axes), high=True))
        opposite = self.null(wrong_sign(self.axes))
        matchings = [_against(own, nulls, opposite, "norm", (0, 0))]
        if rescaled:
            sides = [self._matched(rescaled, high=high) for high in (False, True)]
            by_kl = list(zip(*(values for values, _ in sides), strict=True))
            unmatched = (sides[0][1], sides[1][1])
            matchings.append(_against(own, by_kl, opposite, "kl", unmatched))
        return tuple(zip(*matchings, strict=True))

    def null(self, writes: Writes) -> Both:
        """Of the same change of each row, written in another direction."""
        return self._null(writes, high=False), self._null(writes, high=True)

    def _effect(self, edit: Edit, *, high: bool) -> Interval:
        """Of removing (from positives) or of writing (into negatives), each positive if behaviour moves as expected."""
        rows = self.prompts.negative if high else self.prompts.positive
        points = [axis.point for axis in self.axes]
        change = self.prompts.measure(points, edit, rows) - self.paired.base
        return self.paired.effect(change if high else -change, rows)

    def _null(self, writes: Writes, *, high: bool, scale: float = 1.0) -> float:
        return self._effect(null(self.axes, writes, high=high, scale=scale), high=high).value

    def _matched(self, rescaled: Sequence[Writes], *, high: bool) -> tuple[list[float], int]:
        """The nulls' effects, and how many of them stayed weaker than they should be."""
        own = to_high(self.axes) if high else to_low(self.axes)
        target = max(self.neutral.mean_kl(own), _LEAST_KL)
        found, weaker = [], 0
        for writes in rescaled:
            matched = self._scale(writes, target, high=high)
            found.append(self._null(writes, high=high, scale=matched.scale))
            weaker += matched.is_weaker
        return found, weaker

    def _scale(self, writes: Writes, target: float, *, high: bool) -> Matched:
        def edit_at(scale: float) -> Edit:
            return null(self.axes, writes, high=high, scale=scale)

        return matched_scale(self.neutral, target, edit_at, MATCHING_STEPS)


def _against(
    own: tuple[Interval, Interval],
    nulls: Sequence[Both],
    opposite: Both,
    matched_by: Literal["norm", "kl"],
    unmatched: tuple[int, int],
) -> tuple[Effect, Effect]:
    """Holm's correction is over the two."""
    columns = np.array(nulls).T
    corrected = holm([p_value(effect.value, its) for effect, its in zip(own, columns, strict=True)])
    necessity, sufficiency = (
        Effect(
            effect=effect,
            null_low=float(np.percentile(its, 2.5)),
            null_high=float(np.percentile(its, 97.5)),
            num_nulls=len(its),
            p_value=p,
            z=_z(effect.value, its),
            matched_by=matched_by,
            num_unmatched=num_unmatched,
            wrong_sign=turned,
        )
        for effect, its, p, num_unmatched, turned in zip(
            own, columns, corrected, unmatched, opposite, strict=True
        )
    )
    return necessity, sufficiency


def _z(effect: float, nulls: Sequence[float]) -> float | None:
    """How many standard deviations of the nulls it lies above their mean; None if they don't vary."""
    spread = float(np.std(nulls, ddof=1)) if len(nulls) > 1 else 0.0
    return float((effect - np.mean(nulls)) / spread) if spread > 0 else None
