"""Scores as probabilities, for people to read. Thresholds come from budgets, never from a probability (science, 5.1).

The map is fitted on scores that the monitor gave to examples which it was not fitted on: on those that it was, classes lie
further apart than they will, and every probability would be too sure.
"""

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from monitors.base import Link
from monitors.lab.baselines import folds
from monitors.lab.sections.probability import Probability, ProbabilityMap, ReliabilityBin
from monitors.lab.statistics import Floats, Ints

_MIN_FOR_ISOTONIC = 1000  # positives; below, a free curve follows chance
_FOLDS = 5
_BINS = 10
_LEAST = 1e-12  # of a probability whose log-odds are taken


def fit_probability(
    scores: Floats, labels: Ints, groups: NDArray[np.str_], link: Link, seed: int = 0
) -> Probability | None:
    """Platt's map, or isotonic regression from 1,000 positives on, with its error out of fold.

    scores: the per-request statistic, of examples that the monitor was not fitted on. None: too few groups to tell the
    error, or higher scores are not likelier positive.
    """
    num_folds = min(_FOLDS, *(len(set(groups[labels == label])) for label in (0, 1)))
    if num_folds < 2:  # noqa: PLR2004  one fold leaves nothing to fit on
        return None
    x = log_odds(scores, link)
    whole = _fit(x, labels)
    if whole is None:
        return None
    fold = folds(labels, groups, num_folds, seed)
    shown = np.zeros(len(x))
    for one in range(num_folds):
        part = _fit(x[fold != one], labels[fold != one])
        shown[fold == one] = probabilities(part, x[fold == one]) if part else labels[fold != one].mean()
    bins = _reliability(shown, labels)
    error = sum(b.num_examples * abs(b.probability - b.positive) for b in bins) / len(x)
    brier = float(((shown - labels) ** 2).mean())
    return Probability(**dict(whole), brier=brier, calibration_error=error, reliability=bins)


def log_odds(scores: Floats, link: Link) -> Floats:
    """What the map reads: the score before the link."""
    if link is Link.IDENTITY:
        return scores
    inside = np.clip(scores, _LEAST, 1 - 1e-12)
    return np.log(inside) - np.log1p(-inside)


def probabilities(found: ProbabilityMap, x: Floats, base_rate: float | None = None) -> Floats:
    """Of log-odds x. With a `base_rate`: where that share of requests is positive, and else they are as these examples were.

    posterior odds = odds * (base rate's odds) / (these examples' odds)
    """
    if found.method == "platt":
        logit = found.slope * x + found.intercept
    else:
        places, values = np.array(found.knots).T
        inside = np.interp(x, places, values)
        logit = np.log(inside) - np.log1p(-inside)
    if base_rate is not None:
        logit = logit + _logit(base_rate) - _logit(found.base_rate)
    shown: Floats = np.exp(-np.logaddexp(0, -logit))
    return shown


def _fit(x: Floats, labels: Ints) -> ProbabilityMap | None:
    base_rate = float(labels.mean())
    if labels.sum() >= _MIN_FOR_ISOTONIC:
        least = 1 / (len(x) + 2)  # never quite 0 or 1: Laplace's rule at the ends of the curve
        curve = IsotonicRegression(y_min=least, y_max=1 - least).fit(x, labels)
        knots = tuple(zip(curve.X_thresholds_.tolist(), curve.y_thresholds_.tolist(), strict=True))
        rises = knots[0][1] < knots[-1][1]
        return ProbabilityMap(method="isotonic", base_rate=base_rate, knots=knots) if rises else None
    slope, intercept = _platt(x, labels)
    if slope <= 0:
        return None
    return ProbabilityMap(method="platt", base_rate=base_rate, slope=slope, intercept=intercept)


def _platt(x: Floats, labels: Ints) -> tuple[float, float]:
    """Logistic regression on the score, with Platt's targets, so that classes which don't overlap get a finite slope."""
    num_positive, num_negative = labels.sum(), (labels == 0).sum()
    target = np.where(labels == 1, (num_positive + 1) / (num_positive + 2), 1 / (num_negative + 2))
    middle, spread = x.mean(), max(x.std(), 1e-12)
    z = ((x - middle) / spread)[:, None]
    both = np.concatenate([z, z])
    sides = np.repeat([1, 0], len(x))
    model = LogisticRegression(C=np.inf).fit(both, sides, sample_weight=np.concatenate([target, 1 - target]))
    slope = float(model.coef_[0, 0] / spread)
    return slope, float(model.intercept_[0] - slope * middle)


def _reliability(shown: Floats, labels: Ints) -> tuple[ReliabilityBin, ...]:
    """Ten bins of as many examples each, by rising probability."""
    order = np.argsort(shown, kind="stable")
    return tuple(
        ReliabilityBin(
            num_examples=len(rows),
            probability=float(shown[rows].mean()),
            positive=float(labels[rows].mean()),
        )
        for rows in np.array_split(order, min(_BINS, len(order)))
    )


def _logit(share: float) -> float:
    return float(np.log(share) - np.log1p(-share))
