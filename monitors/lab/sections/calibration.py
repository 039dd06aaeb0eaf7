"""The card's section 'calibration': thresholds by false-positive budget, at the unit of decision."""

from typing import Literal, Self, get_args

from monitors.lab.sections.base import CardPart, Interval, Phase, Section

ThresholdPhase = Literal["prompt", "response", "conversation"]  # conversation: anywhere in the two
Unit = Literal["group", "request"]  # what was drawn independently of the others


class Budget(CardPart):
    fpr: float
    threshold: float
    certified: bool
    rank: int  # the threshold is the rank-th largest maximum; 0: above all of them
    num_needed: int  # benign requests that it would take to certify this budget


class LengthStratum(CardPart):
    """Benign requests of like length, at one budget's threshold."""

    budget: float
    min_tokens: int
    max_tokens: int
    num_requests: int
    fpr: Interval  # Clopper-Pearson


class PhaseCalibration(Section):
    """One phase. `num_examples` are the requests that count as independent."""

    phase: ThresholdPhase
    drawn_from: int | None = None  # benign requests, of each group of which one counts; None: all count
    confidence: float
    budgets: tuple[Budget, ...]
    by_length: tuple[LengthStratum, ...] = ()
    quantiles: tuple[float, ...] = ()  # of the per-request maximum over benign requests, at 0, 1/k ... 1


class CalibrationSection(PhaseCalibration):
    """The main phase (the response, where there are replies), and the others."""

    phase: Phase
    others: tuple[PhaseCalibration, ...] = ()

    @property
    def phases(self) -> tuple[PhaseCalibration, ...]:
        """All of them: prompt, response, conversation."""
        own = {name: getattr(self, name) for name in PhaseCalibration.model_fields}
        order = get_args(ThresholdPhase)
        return tuple(
            sorted((PhaseCalibration(**own), *self.others), key=lambda part: order.index(part.phase))
        )

    def bound_to(self, weights_sha256: str) -> Self:
        others = tuple(other.bound_to(weights_sha256) for other in self.others)
        return super().bound_to(weights_sha256).model_copy(update={"others": others})

    def with_phases_of(self, before: "CalibrationSection") -> Self:
        """Those of a calibration before that this one doesn't cover stay."""
        covered = {part.phase for part in self.phases}
        kept = tuple(part for part in before.phases if part.phase not in covered)
        return self.model_copy(update={"others": self.others + kept})
