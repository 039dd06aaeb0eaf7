"""The card's section 'evaluation': the monitor on labelled examples, with TF-IDF and random directions beside it."""

from monitors.lab.sections.base import CardPart, Interval, Phase, RandomDirections, Section
from monitors.lab.sections.probability import Probability


class AtFpr(CardPart):
    """The share of positives flagged at a threshold that flags at most `fpr` of the negatives; Clopper-Pearson."""

    fpr: float
    tpr: Interval


class Figures(CardPart):
    """How well one score separates. AUROC alone is no basis for a threshold."""

    auroc: Interval  # bootstrap over groups
    log_auroc: float | None  # mean TPR over log FPR in [1e-3, 1e-1]; None: too few negatives
    at_fpr: tuple[AtFpr, ...]  # budgets that so few negatives can't show are left out
    roc: tuple[tuple[float, float], ...]  # (FPR, TPR), at most 200 points


class Compared(CardPart):
    """The monitor with its baselines on one set of examples."""

    num_positive: int
    num_negative: int
    monitor: Figures
    tfidf: (
        Figures | None
    )  # fitted on the monitor's training examples, or out of fold on these; None: nothing to fit on
    random: RandomDirections | None


class Stratum(CardPart):
    name: str
    compared: Compared


class EvaluationSection(Section):
    phase: Phase
    tfidf_fitted_on: str  # "training data" or "these examples, out of fold"
    whole: Compared
    by_dataset: tuple[Stratum, ...] = ()
    leave_one_dataset_out: tuple[Stratum, ...] = ()  # monitor and TF-IDF fitted anew without the named one
    detection_delay_tokens: tuple[
        float, ...
    ] = ()  # quartiles, at the 1 % threshold; empty: nothing was detected
    probability: Probability | None = (
        None  # None: the monitor was fitted on these examples, or too few groups
    )
