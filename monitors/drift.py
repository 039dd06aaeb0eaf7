"""Whether scores in production still look like those of the calibration: one monitor, one phase, O(1) per request.

Of the per-request maximum (reference: science, 5.3). PSI compares its whole distribution with the calibration's and tells
how large a change is; the Kolmogorov-Smirnov test tells whether chance explains it. Tail evidence asks whether more
requests exceed a threshold than its false-positive rate allows: a CUSUM of log-likelihood ratios, which is valid at any
time. Real positives raise all of them: an alarm says that traffic has changed, not why.

PSI alone can't tell: without drift its mean is (B - 1) (1/N + 1/M) for B bins, N requests of the calibration and M of the
window (Yurdakul and Naranjo, Journal of Risk Model Validation 14(4), 2020), so after a small calibration it is large by
itself; and its chi-square distribution holds only where every bin is well filled. Requests that follow one another may be
alike; M of them then tell as much as M / deff independent ones (the first-order correction of Rao and Scott, JASA 76, 1981).
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from monitors.base import Reference, Threshold

WINDOW = 1000  # requests that PSI and the exceedance rate look back on
_MIN_REQUESTS = 200  # below, PSI is mostly noise
_CONSTANT_AFTER = 200  # requests with the very same maximum: the monitor reads nothing that varies
_PSI_ALARM = 0.25  # a convention, as is .1 for "watch"; chance has to be ruled out besides
_BY_CHANCE = 1e-4  # windows without drift in which it is not
_MIN_PER_BIN = 10  # requests of the calibration
_BLOCK = 50  # requests; longer than most runs of like ones
_EVIDENCE_ALARM = math.log(1000.0)  # without drift, one false alarm in 1,000 requests or more on average
_ODDS = 3.0  # the exceedance rate, in multiples of the calibrated one, that is detected soonest


class Alarm(StrEnum):
    """What is wrong."""

    DISTRIBUTION = "distribution"  # PSI
    TAIL = "tail"  # more exceedances than the calibration allows
    CONSTANT = "constant"  # a dead tap: always the same score


@dataclass(frozen=True, slots=True)
class DriftReport:
    """The state of one monitor and phase. None: too few requests so far, or nothing to compare with."""

    num_requests: int
    psi: float | None
    ks_p_value: float | None  # of the Kolmogorov-Smirnov distance; tells changes too small to raise an alarm
    exceedance: float | None  # share of the last requests above the threshold
    log_evidence: float  # log of the CUSUM's likelihood ratio, at least 0
    alarms: frozenset[Alarm]


class ScoreDrift:
    """Fed with the maximum score of each request."""

    def __init__(self, reference: Reference, threshold: Threshold | None, window: int = WINDOW) -> None:
        self._levels = _levels(reference.quantiles)
        self._edges, self._expected = _bins(_coarse(reference))
        self._num_reference = reference.num_requests
        self._varies = reference.quantiles[0] < reference.quantiles[-1]
        self._threshold = threshold
        self._recent: deque[float] = deque(maxlen=window)
        self._num_above = 0
        self._num_requests = 0
        self._num_same = 0
        self._log_evidence = 0.0

    def observe(self, maximum: float) -> None:
        """One request has ended. What is not finite is a failure, which is counted elsewhere."""
        if not math.isfinite(maximum):
            return
        if self._recent:
            self._num_same = self._num_same + 1 if maximum == self._recent[-1] else 0
        if len(self._recent) == self._recent.maxlen:
            self._num_above -= self._is_above(self._recent[0])
        self._recent.append(maximum)
        self._num_above += self._is_above(maximum)
        self._num_requests += 1
        if self._threshold is not None:
            ratio = _log_likelihood_ratio(maximum > self._threshold.value, self._threshold.fpr)
            self._log_evidence = max(0.0, self._log_evidence + ratio)

    def report(self) -> DriftReport:
        num_recent = len(self._recent)
        psi = ks = None
        if num_recent >= _MIN_REQUESTS and self._num_reference >= 2 * _MIN_PER_BIN:
            recent = np.array(self._recent)
            bins = np.searchsorted(self._edges, recent)
            counts = np.bincount(bins, minlength=len(self._expected))
            psi = population_stability(self._expected, self._num_reference, counts)
            num_effective = num_recent / design_effect(bins, len(self._expected))
            ks = kolmogorov_p(distance(recent, self._levels), self._num_reference, num_effective)
        alarms = {
            Alarm.DISTRIBUTION: psi is not None and psi > _PSI_ALARM and ks is not None and ks < _BY_CHANCE,
            Alarm.TAIL: self._log_evidence > _EVIDENCE_ALARM,
            Alarm.CONSTANT: self._varies and self._num_same >= _CONSTANT_AFTER,
        }
        return DriftReport(
            self._num_requests,
            psi,
            ks,
            self._num_above / num_recent if num_recent and self._threshold is not None else None,
            self._log_evidence,
            frozenset(alarm for alarm, is_on in alarms.items() if is_on),
        )

    def _is_above(self, maximum: float) -> bool:
        return self._threshold is not None and maximum > self._threshold.value


def population_stability(expected: Sequence[float], num_reference: int, counts: NDArray[np.int64]) -> float:
    """PSI = sum (q - p) ln(q / p) over bins; half a request is added to each bin, so that none is empty.

    `expected` are the calibration's shares of the bins, `counts` the requests that fell into them.
    """
    p = (np.asarray(expected) * num_reference + 0.5) / (num_reference + 0.5 * len(expected))
    q = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    return float(np.sum((q - p) * np.log(q / p)))


def design_effect(bins: NDArray[np.int64], num_bins: int) -> float:
    """How many times as much shares of bins vary from block to block as they would if requests were independent; 1 or more.

    bins: the bin of each request, in order. A change within the window counts as such variation, until all of it is new.
    """
    num_blocks = len(bins) // _BLOCK
    blocks = bins[len(bins) - num_blocks * _BLOCK :].reshape(num_blocks, _BLOCK)
    shares = np.stack([np.bincount(block, minlength=num_bins) for block in blocks]) / _BLOCK
    whole = shares.mean(axis=0)
    independent = float((whole * (1 - whole)).sum()) / _BLOCK
    found = float(shares.var(axis=0, ddof=1).sum())
    return max(1.0, found / independent) if independent else 1.0


def distance(recent: NDArray[np.float64], levels: Mapping[float, float]) -> float:
    """Kolmogorov-Smirnov: the largest difference between the shares of two samples at or below a score.

    levels: by score, the calibration's share. At its quantiles only, so it may be too small, never too large.
    """
    ordered = np.sort(recent)
    below = np.searchsorted(ordered, list(levels), side="right") / len(ordered)
    return float(np.abs(below - np.array(list(levels.values()))).max())


def kolmogorov_p(found: float, num_reference: float, num_recent: float) -> float:
    """How often samples of these sizes from one distribution lie so far apart: 2 sum (-1)^(k-1) exp(-2 k^2 x^2).

    x = (sqrt(n) + 0.12 + 0.11 / sqrt(n)) distance, for n = N M / (N + M) (Stephens, JRSS B 32, 1970).
    """
    root = math.sqrt(num_reference * num_recent / (num_reference + num_recent))
    x = (root + 0.12 + 0.11 / root) * found
    if x < 0.3:  # noqa: PLR2004  there p is 1 to five digits, and the sum needs many terms
        return 1.0
    total = sum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 20))
    return float(min(1.0, 2 * total))


def _coarse(reference: Reference) -> tuple[float, ...]:
    """Every quantile, or so few that requests of the calibration stand between any two of them."""
    last = len(reference.quantiles) - 1
    steps = [step for step in range(1, last + 1) if last % step == 0]
    step = next((s for s in steps if reference.num_requests * s / last >= _MIN_PER_BIN), last)
    return reference.quantiles[::step]


def _levels(quantiles: Sequence[float]) -> dict[float, float]:
    """By score, the share of the calibration at or below it."""
    last = len(quantiles) - 1
    return {value: index / last for index, value in enumerate(quantiles)}  # the last index of a value wins


def _bins(quantiles: Sequence[float]) -> tuple[list[float], list[float]]:
    """Bins between the distinct quantiles: (-inf, e_0], (e_0, e_1], ... (e_m, inf), and the share expected in each.

    Equal quantiles are a point that holds much of the mass; it ends one bin. Below the least one nothing is expected, so
    that it ends none.
    """
    level = _levels(quantiles)
    edges = [value for value in sorted(level)[:-1] if level[value] > 0] or sorted(level)[-1:]
    below = [0.0, *(level[edge] for edge in edges), 1.0]
    return edges, [b - a for a, b in pairwise(below)]


def _log_likelihood_ratio(is_above: bool, fpr: float) -> float:  # noqa: FBT001
    """Of one request, for a rate of `_ODDS * fpr` against `fpr`."""
    alternative = min(_ODDS * fpr, (1.0 + fpr) / 2)
    return math.log(alternative / fpr) if is_above else math.log((1 - alternative) / (1 - fpr))
