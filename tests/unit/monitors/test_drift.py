"""Drift is told from the calibration's distribution; and what looks like the calibration raises no alarm."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from monitors.base import Calibration, Reference, Threshold
from monitors.drift import Alarm, ScoreDrift, population_stability

LEVELS = np.linspace(0, 1, 21)


def reference(sample):
    return Reference(
        "prompt", len(sample), tuple(np.quantile(sample, LEVELS, method="inverted_cdf").tolist())
    )


def threshold(fpr, value):
    return Threshold("prompt", fpr, value, certified=True)


def feed(drift, sample):
    for maximum in sample:
        drift.observe(float(maximum))
    return drift.report()


def test_psi_is_the_sum_over_bins_of_its_definition():
    expected, counts, n_ref = [0.5, 0.3, 0.2], np.array([10, 20, 70]), 1000
    p = [(e * n_ref + 0.5) / (n_ref + 1.5) for e in expected]
    q = [(c + 0.5) / (100 + 1.5) for c in counts]
    plain = sum((b - a) * math.log(b / a) for a, b in zip(p, q, strict=True))
    assert population_stability(expected, n_ref, counts) == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda rng, n: rng.normal(size=n), id="normal"),
        pytest.param(lambda rng, n: rng.standard_cauchy(n), id="heavy tails"),
        pytest.param(lambda rng, n: rng.integers(0, 4, n) / 4, id="ties"),
        pytest.param(lambda rng, n: np.where(rng.random(n) < 0.9, 0.0, rng.random(n)), id="mostly zero"),
    ],
)
def test_traffic_like_the_calibration_raises_no_alarm(draw):
    alarms = Counter()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        sample = draw(rng, 4000)
        value = float(np.quantile(sample, 0.99))
        report = feed(ScoreDrift(reference(sample), threshold(0.01, value)), draw(rng, 1000))
        alarms.update(report.alarms)
        assert report.num_requests == 1000
    assert alarms[Alarm.DISTRIBUTION] == alarms[Alarm.CONSTANT] == 0
    assert alarms[Alarm.TAIL] <= 3


def test_a_shifted_distribution_is_told_by_psi():
    rng = np.random.default_rng(0)
    report = feed(ScoreDrift(reference(rng.normal(size=4000)), None), rng.normal(0.8, 1, 1000))
    assert report.alarms == {Alarm.DISTRIBUTION}
    assert report.exceedance is None


def test_a_raised_tail_is_told_long_before_the_distribution_looks_different():
    rng = np.random.default_rng(0)
    sample = rng.normal(size=4000)
    drift = ScoreDrift(reference(sample), threshold(0.01, 2.33))
    report = feed(drift, np.where(rng.random(600) < 0.05, 3.0, rng.normal(size=600)))
    assert report.alarms == {Alarm.TAIL}
    assert report.psi is not None
    assert report.psi < 0.25
    assert report.exceedance == pytest.approx(0.06, abs=0.03)


def test_a_dead_tap_is_told_though_its_score_is_a_likely_one():
    sample = np.random.default_rng(0).normal(size=1000)
    drift = ScoreDrift(reference(sample), None)
    assert Alarm.CONSTANT not in feed(drift, np.zeros(200)).alarms
    assert Alarm.CONSTANT in feed(drift, np.zeros(1)).alarms
    assert Alarm.CONSTANT not in feed(drift, np.ones(1)).alarms


def test_old_requests_are_forgotten():
    rng = np.random.default_rng(0)
    sample = rng.normal(size=4000)
    drift = ScoreDrift(reference(sample), threshold(0.01, 2.33))
    assert feed(drift, rng.normal(3, 1, 1000)).exceedance > 0.5
    assert feed(drift, rng.normal(0, 1, 1000)).exceedance < 0.05
    assert drift.report().psi < 0.1


def test_too_few_requests_give_no_figure_and_failures_are_left_out():
    drift = ScoreDrift(reference(np.arange(100.0)), threshold(0.01, 99.0))
    report = feed(drift, [math.nan, -math.inf, *[5.0, 6.0] * 90])
    assert report.num_requests == 180
    assert report.psi is None


def test_the_threshold_nearest_to_one_percent_is_watched():
    thresholds = tuple(threshold(fpr, 1 - fpr) for fpr in (0.05, 0.01, 0.001))
    calibration = Calibration(5000, 0.95, thresholds)
    assert calibration.threshold("prompt", certified=True).fpr == 0.01
    assert calibration.threshold("response", certified=True) is None
    uncertified = Calibration(50, 0.95, (*thresholds[::2], replace(thresholds[1], certified=False)))
    assert uncertified.threshold("prompt", certified=True).fpr == 0.05
    assert uncertified.threshold("prompt").fpr == 0.01


def test_a_reference_must_rise():
    with pytest.raises(ValueError, match="rising"):
        Reference("prompt", 10, (1.0, 0.5))
