"""The card's section 'calibration': thresholds by false-positive budget, at the unit of decision."""

from monitors.lab.sections.base import CardPart, Interval, Phase, Section


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


class CalibrationSection(Section):
    phase: Phase
    confidence: float
    budgets: tuple[Budget, ...]
    by_length: tuple[LengthStratum, ...] = ()
    quantiles: tuple[float, ...] = ()  # of the per-request maximum over benign requests, at 0, 1/k ... 1
