"""Probabilities are told as often as they come true, on examples that the map was not fitted on."""

import numpy as np
import pytest
from scipy.optimize import minimize

from monitors.base import Link
from monitors.lab import probability
from monitors.lab.probability import fit_probability, log_odds, probabilities


def drawn(rng: np.random.Generator, num: int, slope: float = 2.0, intercept: float = -1.0):
    """Scores, labels drawn by a known probability, and groups of one."""
    scores = rng.normal(size=num)
    truth = 1 / (1 + np.exp(-(slope * scores + intercept)))
    return scores, (rng.random(num) < truth).astype(np.int64), np.arange(num).astype(str), truth


@pytest.mark.parametrize(("num", "method"), [(900, "platt"), (4_000, "isotonic")])
def test_it_finds_the_probability_that_labels_were_drawn_by(num: int, method: str):
    scores, labels, groups, truth = drawn(np.random.default_rng(0), num)
    found = fit_probability(scores, labels, groups, Link.IDENTITY)
    assert found.method == method
    assert np.abs(probabilities(found, scores) - truth).mean() < 0.03
    assert found.calibration_error < 0.06
    assert found.brier == pytest.approx((truth * (1 - truth)).mean(), abs=0.02)
    assert sum(b.num_examples for b in found.reliability) == num


def test_platts_map_is_the_likeliest_for_his_targets():
    scores, labels, groups, _ = drawn(np.random.default_rng(1), 200)
    found = fit_probability(scores, labels, groups, Link.IDENTITY)
    positive = labels.sum()
    target = np.where(labels == 1, (positive + 1) / (positive + 2), 1 / (len(labels) - positive + 2))

    def loss(map_):
        z = map_[0] * scores + map_[1]
        return (np.logaddexp(0, z) - target * z).sum()

    best = minimize(loss, [1.0, 0.0]).x
    assert (found.slope, found.intercept) == pytest.approx(tuple(best), rel=1e-3, abs=1e-3)


def test_classes_that_do_not_overlap_are_not_told_with_certainty():
    scores = np.concatenate([np.linspace(-2, -1, 40), np.linspace(1, 2, 40)])
    labels = np.repeat([0, 1], 40)
    found = fit_probability(scores, labels, np.arange(80).astype(str), Link.IDENTITY)
    assert found.slope < 20
    assert probabilities(found, np.array([1.0]))[0] < 0.995


def test_a_map_of_scores_in_sample_is_too_sure_and_one_of_held_out_scores_is_not():
    """A probe of as many channels as examples separates those that it was fitted on, whatever they say."""
    rng = np.random.default_rng(2)

    def examples(num: int):
        labels = rng.integers(0, 2, num)
        x = rng.normal(size=(num, 150))
        x[:, 0] += 3 * labels  # one channel tells
        return x, labels

    (x, y), (held, y_held), (fresh, y_fresh) = examples(200), examples(200), examples(2000)
    w = np.linalg.lstsq(x, 2.0 * y - 1, rcond=None)[0]
    errors = {}
    for name, scores, labels in (("in sample", x @ w, y), ("held out", held @ w, y_held)):
        found = fit_probability(scores, labels, np.arange(200).astype(str), Link.IDENTITY)
        told = probabilities(found, fresh @ w)
        errors[name] = ((told - y_fresh) ** 2).mean()
    assert errors["held out"] + 0.05 < errors["in sample"]


def test_errors_are_of_groups_that_the_map_did_not_see(monkeypatch):
    """Labels that go by the group, not by the score: in sample a free curve would follow them."""
    monkeypatch.setattr(probability, "_MIN_FOR_ISOTONIC", 1)
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(40), 25)
    labels = (groups % 2).astype(np.int64)
    scores = rng.normal(size=40)[groups] + 0.01 * rng.normal(size=1000)
    found = fit_probability(scores, labels, groups.astype(str), Link.IDENTITY)
    if found is not None:
        in_sample = ((probabilities(found, scores) - labels) ** 2).mean()
        assert found.brier > in_sample + 0.02


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_another_base_rate_multiplies_the_odds(monkeypatch, method: str):
    monkeypatch.setattr(probability, "_MIN_FOR_ISOTONIC", 1 if method == "isotonic" else 10**9)
    scores, labels, groups, _ = drawn(np.random.default_rng(4), 400)
    found = fit_probability(scores, labels, groups, Link.IDENTITY)
    x = np.array([-1.0, 0.0, 2.0])
    own, rare = probabilities(found, x), probabilities(found, x, base_rate=0.001)
    ratio = (0.001 / 0.999) / (found.base_rate / (1 - found.base_rate))
    assert rare / (1 - rare) == pytest.approx(own / (1 - own) * ratio)
    assert probabilities(found, x, base_rate=found.base_rate) == pytest.approx(own)


def test_a_score_that_is_a_probability_is_read_as_its_log_odds():
    logits = np.array([-30.0, -1.0, 0.0, 3.0])
    assert log_odds(1 / (1 + np.exp(-logits)), Link.SIGMOID) == pytest.approx(logits.clip(-27.7), abs=0.1)
    assert np.isfinite(log_odds(np.array([0.0, 1.0]), Link.SIGMOID)).all()
    assert (log_odds(logits, Link.IDENTITY) == logits).all()


def test_nothing_is_told_of_scores_that_fall_where_positives_rise_or_of_one_group():
    scores, labels, groups, _ = drawn(np.random.default_rng(5), 300)
    assert fit_probability(-scores, labels, groups, Link.IDENTITY) is None
    assert fit_probability(scores, labels, np.where(labels, "a", "b"), Link.IDENTITY) is None
