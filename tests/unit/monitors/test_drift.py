"""Drift is told from the calibration's distribution; and what looks like the calibration raises no alarm."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest, kstwobign, norm

from monitors.base import Calibration, Reference, Threshold
from monitors.drift import (
    Alarm,
    ScoreDrift,
    design_effect,
    distance,
    kolmogorov_p,
    population_stability,
)

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


def ever_alarmed(num_reference, draw, shift=0.0, num_runs=60, num_requests=2000) -> float:
    """In which share of runs, each with a calibration of its own, the distribution raised an alarm at some time."""
    alarmed = 0
    for seed in range(num_runs):
        rng = np.random.default_rng(seed)
        sample = draw(rng, num_reference)
        quantiles = tuple(np.quantile(sample, LEVELS).tolist())  # as calibration takes them
        drift = ScoreDrift(Reference("prompt", num_reference, quantiles), None)
        for _ in range(0, num_requests, 100):
            report = feed(drift, draw(rng, 100) + shift)
            if Alarm.DISTRIBUTION in report.alarms:
                alarmed += 1
                break
    return alarmed / num_runs


def normal(rng, n):
    return rng.normal(size=n)


@pytest.mark.parametrize("num_reference", [20, 59, 100, 200, 300, 1000])
def test_small_calibrations_raise_no_false_alarms(num_reference):
    """By 0.25 alone, 93 % of calibrations on 59 requests would raise one, 19 % of those on 200."""
    assert ever_alarmed(num_reference, normal) <= 0.05


@pytest.mark.parametrize(("num_reference", "shift"), [(59, 1.5), (100, 1.2), (300, 0.9), (1000, 0.7)])
def test_what_a_calibration_of_its_size_can_tell_is_told(num_reference, shift):
    assert ever_alarmed(num_reference, normal, shift) >= 0.9


def in_runs(rng, n):
    """Traffic of which 20 requests in a row have nearly the same score."""
    return np.repeat(rng.normal(size=n // 20 + 1), 20)[:n] + rng.normal(size=n) * 1e-3


def test_runs_of_like_requests_raise_no_false_alarms():
    """The calibration is of independent requests; 1,000 requests in a window tell as much as 50 of them."""
    alarmed = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        drift = ScoreDrift(reference(rng.normal(size=1000)), None)
        alarmed += any(Alarm.DISTRIBUTION in feed(drift, in_runs(rng, 100)).alarms for _ in range(20))
    assert alarmed <= 2


@pytest.mark.parametrize(
    ("found", "n", "m"), [(0.01, 50, 90), (0.05, 4000, 200), (0.2, 300, 100), (0.5, 30, 200)]
)
def test_the_chance_of_a_distance_is_kolmogorovs(found, n, m):
    root = math.sqrt(n * m / (n + m))
    x = (root + 0.12 + 0.11 / root) * found
    assert kolmogorov_p(found, n, m) == pytest.approx(kstwobign.sf(x), abs=1e-4)


def test_the_distance_is_scipys_where_the_calibration_is_known_at_every_score():
    rng = np.random.default_rng(0)
    recent = rng.normal(0.3, 1, 500)
    levels = {float(x): float(norm.cdf(x)) for x in np.sort(np.concatenate([recent, recent - 1e-9]))}
    assert distance(recent, levels) == pytest.approx(kstest(recent, norm.cdf).statistic, abs=2 / 500)


def test_a_change_too_small_for_an_alarm_is_told_by_its_p_value():
    rng = np.random.default_rng(0)
    drift = ScoreDrift(reference(rng.normal(size=4000)), None)
    same = feed(drift, rng.normal(size=1000))
    assert same.ks_p_value > 0.01
    other = feed(drift, rng.normal(0.3, 1, 1000))
    assert other.alarms == frozenset()
    assert other.ks_p_value < 1e-6


def test_the_design_effect_is_the_length_of_runs_and_one_without():
    rng = np.random.default_rng(0)
    alone = [design_effect(rng.integers(0, 10, 1000), 10) for _ in range(50)]
    assert min(alone) == 1.0
    assert np.mean(alone) < 1.2
    runs = [design_effect(np.repeat(rng.integers(0, 10, 100), 10), 10) for _ in range(50)]
    assert np.mean(runs) == pytest.approx(10, rel=0.15)
    assert design_effect(np.zeros(1000, dtype=np.int64), 10) == 1.0


def test_a_calibration_of_a_handful_gives_nothing_to_compare_with():
    report = feed(ScoreDrift(reference(np.arange(19.0)), None), np.random.default_rng(0).normal(9, 5, 500))
    assert (report.psi, report.ks_p_value) == (None, None)


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
