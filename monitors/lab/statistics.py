"""Figures of scores against labels, with their uncertainty. The unit is the request: one score each.

Definitions and the numbers to check them against: science, sections 1.3 and 5.1.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta
from sklearn.metrics import roc_auc_score, roc_curve

from monitors.lab.sections.base import Interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MIN_LOG_FPR, MAX_LOG_FPR = 1e-3, 1e-1  # between which log_auroc averages
_ROC_POINTS = 200
_BOOTSTRAPS = 500


def auroc(labels: Ints, scores: Floats) -> float:
    """The chance that a positive scores above a negative; ties count half. Raises ValueError if one class is missing."""
    _need_both(labels)
    return float(roc_auc_score(labels, scores))


def auroc_interval(labels: Ints, scores: Floats, groups: NDArray[np.str_], seed: int = 0) -> Interval:
    """AUROC with a 95 % interval by bootstrap over groups (2.5th and 97.5th percentile of 500 draws)."""
    value = auroc(labels, scores)
    names, member = np.unique(groups, return_inverse=True)
    _, place = np.unique(scores, return_inverse=True)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(_BOOTSTRAPS):
        times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[member]
        drawn = _weighted_auroc(labels, place, times)
        if drawn is not None:
            found.append(drawn)
    low, high = np.percentile(found, [2.5, 97.5]) if found else (0.0, 1.0)
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value))


def log_auroc(labels: Ints, scores: Floats) -> float | None:
    """Mean TPR over log FPR in [1e-3, 1e-1]: the area where thresholds lie. None below 1,000 negatives."""
    _need_both(labels)
    if (labels == 0).sum() < 1 / MIN_LOG_FPR:
        return None
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    at = np.geomspace(MIN_LOG_FPR, MAX_LOG_FPR, 400)
    return float(tpr[np.searchsorted(fpr, at, side="right") - 1].mean())


def tpr_at(labels: Ints, scores: Floats, fpr: float) -> Interval | None:
    """The share of positives above the lowest threshold that at most `fpr` of the negatives exceed; Clopper-Pearson.

    None if there are fewer than 1 / fpr negatives, of which no such share could be seen.
    """
    _need_both(labels)
    negatives = np.sort(scores[labels == 0])[::-1]
    if len(negatives) * fpr < 1:
        return None
    threshold = negatives[int(fpr * len(negatives))]
    positives = scores[labels == 1]
    return clopper_pearson(int((positives > threshold).sum()), len(positives))


def roc_points(labels: Ints, scores: Floats) -> tuple[tuple[float, float], ...]:
    """(FPR, TPR) of at most 200 thresholds, evenly on a logarithmic FPR axis: the low end is kept in full."""
    _need_both(labels)
    fpr, tpr, _ = roc_curve(labels, scores)
    if len(fpr) > _ROC_POINTS:
        # 0 first: the most that is found without any false positive is the end of the low end
        wanted = np.array([0.0, *np.geomspace(1 / max(1, (labels == 0).sum()), 1, _ROC_POINTS - 3)])
        kept = np.unique([0, *(np.searchsorted(fpr, wanted, side="right") - 1), len(fpr) - 1])
        fpr, tpr = fpr[kept], tpr[kept]
    return tuple(zip(fpr.tolist(), tpr.tolist(), strict=True))


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """A share with its exact (conservative) interval. Raises ValueError for n = 0."""
    if n < 1:
        raise ValueError("a share of nothing has no interval")
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, successes, n - successes + 1)) if successes else 0.0
    high = float(beta.isf(tail, successes + 1, n - successes)) if successes < n else 1.0
    return Interval(value=successes / n, low=low, high=high)


def one_of_each(groups: NDArray[np.str_], seed: int = 0) -> NDArray[np.intp]:
    """The place of one member of each group, drawn by chance, in order.

    If groups are independent, so are these, however alike the members of one are (a two-stage sample, one per cluster).
    """
    shuffled = np.random.default_rng(seed).permutation(len(groups))
    _, first = np.unique(groups[shuffled], return_index=True)
    return np.sort(shuffled[first])


def certified_rank(n: int, fpr: float, confidence: float = 0.95) -> int:
    """The largest k such that the k-th largest of n benign scores is exceeded by a new one with chance <= `fpr`.

    That chance is Beta(k, n + 1 - k) distributed over draws of the n scores, and `confidence` bounds it (PAC, science
    5.1). 0: n is too small for any.
    """
    ranks = np.arange(1, int(n * fpr) + 2)
    ranks = ranks[ranks <= n]
    exceeds = beta.sf(fpr, ranks, n + 1 - ranks)  # rises with the rank
    return int(np.searchsorted(exceeds, 1 - confidence, side="right"))


def num_needed(fpr: float, confidence: float = 0.95) -> int:
    """How many benign requests certify a budget at all: the smallest n with (1 - fpr)^n <= 1 - confidence."""
    return int(np.ceil(np.log(1 - confidence) / np.log1p(-fpr)))


def _need_both(labels: Ints) -> None:
    if not 0 < labels.sum() < len(labels):
        missing = "positive" if not labels.sum() else "negative"
        raise ValueError(f"no {missing} examples: both classes are needed")


def _weighted_auroc(labels: Ints, place: Ints, times: Ints) -> float | None:
    """AUROC where example i counts times[i]; place: the rank of its score, equal for ties. None if a class is missing."""
    positive = np.bincount(place, times * labels)
    negative = np.bincount(place, times * (1 - labels))
    pairs = positive.sum() * negative.sum()
    below = np.cumsum(negative) - negative / 2
    return float(positive @ below / pairs) if pairs else None
