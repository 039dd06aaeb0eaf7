"""Statistics against their plain definitions, and against the numbers that the literature gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from monitors.lab.statistics import (
    _weighted_auroc,
    auroc,
    auroc_interval,
    certified_rank,
    clopper_pearson,
    log_auroc,
    num_needed,
    roc_points,
    tpr_at,
)

scored = st.lists(st.tuples(st.integers(0, 1), st.integers(-5, 5)), min_size=2, max_size=40).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)


def split(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = zip(*rows, strict=True)
    return np.array(labels), np.array(scores, dtype=float)


@given(scored)
def test_auroc_is_the_share_of_pairs_in_order(rows):
    labels, scores = split(rows)
    pairs = [np.sign(p - n) / 2 + 0.5 for p in scores[labels == 1] for n in scores[labels == 0]]
    assert auroc(labels, scores) == pytest.approx(np.mean(pairs))


@given(scored, st.sampled_from([0.05, 0.1, 0.5]))
def test_tpr_keeps_its_false_positive_budget(rows, fpr):
    labels, scores = split(rows)
    found = tpr_at(labels, scores, fpr)
    negatives, positives = scores[labels == 0], scores[labels == 1]
    if found is None:
        assert len(negatives) * fpr < 1
        return
    best = max((positives > t).mean() for t in negatives if (negatives > t).mean() <= fpr)
    assert found.value == pytest.approx(best)


def test_tpr_at_a_budget_that_few_negatives_cannot_show_is_none():
    assert tpr_at(np.array([0] * 99 + [1]), np.arange(100.0), 0.01) is None


@settings(deadline=None, max_examples=5)
@given(scored)
def test_the_interval_of_auroc_holds_its_value(rows):
    labels, scores = split(rows)
    found = auroc_interval(labels, scores, np.arange(len(labels)).astype(str))
    assert found.low <= found.value <= found.high


def test_the_bootstrap_draws_groups_whole():
    labels, scores = np.array([0, 1] * 50), np.random.default_rng(0).normal(size=100)
    alone = auroc_interval(labels, scores, np.arange(100).astype(str))
    in_pairs = auroc_interval(
        np.repeat(labels, 9), np.repeat(scores, 9), np.repeat(np.arange(100), 9).astype(str)
    )
    assert in_pairs.high - in_pairs.low == pytest.approx(alone.high - alone.low, abs=0.02)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(43, 100, 0.331, 0.533), (0, 300, 0, 0.0122), (10, 1000, 0.0048, 0.0183)],
)
def test_clopper_pearson_as_published(successes, n, low, high):
    found = clopper_pearson(successes, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-4)


@pytest.mark.parametrize(
    ("n", "fpr", "rank"), [(1000, 0.01, 5), (5000, 0.01, 39), (298, 0.01, 0), (299, 0.01, 1)]
)
def test_the_certified_rank_as_published(n, fpr, rank):
    assert certified_rank(n, fpr) == rank


@pytest.mark.parametrize(("fpr", "n"), [(0.01, 299), (0.001, 2995), (0.0005, 5990)])
def test_the_requests_needed_as_published(fpr, n):
    assert num_needed(fpr) == n
    assert certified_rank(n, fpr) == 1
    assert certified_rank(n - 1, fpr) == 0


def test_log_auroc_of_a_perfect_score_is_one_and_of_chance_is_small():
    labels = np.repeat([0, 1], 2000)
    assert log_auroc(labels, labels.astype(float)) == pytest.approx(1)
    chance = log_auroc(labels, np.random.default_rng(0).normal(size=4000))
    assert chance is not None
    assert chance < 0.05
    assert log_auroc(labels[1500:], labels[1500:].astype(float)) is None


def test_roc_points_are_few_rising_and_end_at_the_corners():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 3000)
    points = np.array(roc_points(labels, rng.normal(size=6000) + labels))
    assert len(points) <= 200
    assert (np.diff(points, axis=0) >= 0).all()
    assert (points[0], points[-1]) == (pytest.approx([0, 0]), pytest.approx([1, 1]))


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="no negative examples"):
        auroc(np.ones(3, dtype=int), np.arange(3.0))


@given(scored, st.integers(0, 5))
def test_a_bootstrap_draw_is_the_auroc_of_repeated_examples(rows, seed):
    labels, scores = split(rows)
    times = np.random.default_rng(seed).integers(0, 4, size=len(labels))
    drawn = np.repeat(labels, times)
    found = _weighted_auroc(labels, np.unique(scores, return_inverse=True)[1], times)
    if 0 < drawn.sum() < len(drawn):
        assert found == pytest.approx(auroc(drawn, np.repeat(scores, times)))
    else:
        assert found is None


@given(
    st.integers(1, 4000), st.sampled_from([0.001, 0.01, 0.05, 0.2]), st.sampled_from([0.5, 0.9, 0.95, 0.999])
)
@settings(deadline=None)
def test_the_certified_rank_is_the_largest_that_keeps_its_promise(n, fpr, confidence):
    # P[Beta(k, n + 1 - k) > fpr] is the chance that fewer than k of n draws fall into the top share fpr
    kept = [k for k in range(1, min(n, int(n * fpr) + 1) + 1) if binom.cdf(k - 1, n, fpr) <= 1 - confidence]
    assert certified_rank(n, fpr, confidence) == max(kept, default=0)


@given(st.floats(1e-4, 0.9), st.floats(0.5, 0.999))
@settings(deadline=None)
def test_one_request_fewer_than_needed_certifies_nothing(fpr, confidence):
    n = num_needed(fpr, confidence)
    assert (1 - fpr) ** n <= (1 - confidence) * (1 + 1e-9)
    assert (1 - fpr) ** (n - 1) > (1 - confidence) * (1 - 1e-9)


def test_the_interval_of_auroc_covers_the_truth_where_examples_come_in_groups():
    rng, covered = np.random.default_rng(3), 0
    truth = norm.cdf(1 / np.sqrt(2))  # of N(1, 1) against N(0, 1)
    for seed in range(60):
        labels = np.repeat([0, 1], 60)
        shared = np.repeat(rng.normal(size=120), 5)  # five near copies of each
        scores = shared + np.repeat(labels, 5) + rng.normal(scale=1e-3, size=600)
        found = auroc_interval(np.repeat(labels, 5), scores, np.repeat(np.arange(120), 5).astype(str), seed)
        covered += found.low <= truth <= found.high
    assert covered >= binom.ppf(0.001, 60, 0.93)


def test_roc_points_keep_what_is_found_without_any_false_positive():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 3000)
    scores = rng.normal(size=6000) + 3 * labels
    found = (scores[labels == 1] > scores[labels == 0].max()).mean()
    assert max(tpr for fpr, tpr in roc_points(labels, scores) if fpr == 0) == pytest.approx(found)
