"""Whether scores in production still look like those of the calibration: one monitor, one phase, O(1) per request.

Two measures of the per-request maximum (reference: science, 5.3). PSI compares its whole distribution with the
calibration's. Tail evidence asks whether more requests exceed a threshold than its false-positive rate allows: a CUSUM of
log-likelihood ratios, which is valid at any time. Real positives raise both: an alarm says that traffic has changed,
not why.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from monitors.base import Reference, Threshold

WINDOW = 1000  # requests that PSI and the exceedance rate look back on
_MIN_REQUESTS = 200  # below, PSI is mostly noise
_CONSTANT_AFTER = 200  # requests with the very same maximum: the monitor reads nothing that varies
_PSI_ALARM = 0.25  # a convention, as is .1 for "watch"
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
    exceedance: float | None  # share of the last requests above the threshold
    log_evidence: float  # log of the CUSUM's likelihood ratio, at least 0
    alarms: frozenset[Alarm]


class ScoreDrift:
    """Fed with the maximum score of each request."""

    def __init__(self, reference: Reference, threshold: Threshold | None, window: int = WINDOW) -> None:
        self._edges, self._expected = _bins(reference.quantiles)
        self._num_reference = reference.num_requests
        self._varies = reference.quantiles[0] < reference.quantiles[-1]
        self._threshold = threshold
        self._recent: deque[float] = deque(maxlen=window)
        self._counts = np.zeros(len(self._expected), dtype=np.int64)
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
            self._count(self._recent[0], -1)
        self._recent.append(maximum)
        self._count(maximum, 1)
        self._num_requests += 1
        if self._threshold is not None:
            ratio = _log_likelihood_ratio(maximum > self._threshold.value, self._threshold.fpr)
            self._log_evidence = max(0.0, self._log_evidence + ratio)

    def report(self) -> DriftReport:
        num_recent = len(self._recent)
        psi = (
            population_stability(self._expected, self._num_reference, self._counts)
            if num_recent >= _MIN_REQUESTS
            else None
        )
        alarms = {
            Alarm.DISTRIBUTION: psi is not None and psi > _PSI_ALARM,
            Alarm.TAIL: self._log_evidence > _EVIDENCE_ALARM,
            Alarm.CONSTANT: self._varies and self._num_same >= _CONSTANT_AFTER,
        }
        return DriftReport(
            self._num_requests,
            psi,
            self._num_above / num_recent if num_recent and self._threshold is not None else None,
            self._log_evidence,
            frozenset(alarm for alarm, is_on in alarms.items() if is_on),
        )

    def _count(self, maximum: float, by: int) -> None:
        self._counts[int(np.searchsorted(self._edges, maximum, side="left"))] += by
        if self._threshold is not None and maximum > self._threshold.value:
            self._num_above += by


def population_stability(expected: Sequence[float], num_reference: int, counts: NDArray[np.int64]) -> float:
    """PSI = sum (q - p) ln(q / p) over bins; half a request is added to each bin, so that none is empty.

    `expected` are the calibration's shares of the bins, `counts` the requests that fell into them.
    """
    p = (np.asarray(expected) * num_reference + 0.5) / (num_reference + 0.5 * len(expected))
    q = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    return float(np.sum((q - p) * np.log(q / p)))


def _bins(quantiles: Sequence[float]) -> tuple[list[float], list[float]]:
    """Bins between the distinct quantiles: (-inf, e_0], (e_0, e_1], ... (e_m, inf), and the share expected in each.

    Equal quantiles are a point that holds much of the mass; it ends one bin.
    """
    last = len(quantiles) - 1
    level = {value: index / last for index, value in enumerate(quantiles)}  # the last index of a value wins
    edges = sorted(level)[:-1] or sorted(level)
    below = [0.0, *(level[edge] for edge in edges), 1.0]
    return edges, [b - a for a, b in pairwise(below)]


def _log_likelihood_ratio(is_above: bool, fpr: float) -> float:  # noqa: FBT001
    """Of one request, for a rate of `_ODDS * fpr` against `fpr`."""
    alternative = min(_ODDS * fpr, (1.0 + fpr) / 2)
    return math.log(alternative / fpr) if is_above else math.log((1 - alternative) / (1 - fpr))
