"""The figures: thresholds hold their budget, and intervals are Clopper and Pearson's."""

import numpy as np
import pytest

from deploy.demo import figures


@pytest.mark.parametrize(("n", "certified"), [(298, False), (299, True)])
def test_one_percent_needs_299_requests(n, certified):
    value, is_certified = figures.threshold(np.linspace(0, 1, n), 0.01)
    assert is_certified is certified
    assert value == 1.0


def test_a_certified_threshold_takes_the_fifth_largest_of_a_thousand():
    value, _ = figures.threshold(np.arange(1000.0), 0.01)
    assert value == 995.0  # science, section 5.1: n=1000, alpha=1 %, k=5


def test_intervals_match_the_published_ones():
    assert figures.interval(43, 100) == pytest.approx((0.331, 0.533), abs=1e-3)
    assert figures.interval(0, 300) == pytest.approx((0.0, 0.0122), abs=1e-4)


def test_tpr_counts_positives_above_the_allowed_negatives():
    truth = np.repeat([False, True], [100, 4])
    scores = np.concatenate([np.arange(100.0), [98.5, 99.5, 97.0, 200.0]])
    assert figures.tpr_at(truth, scores, 0.01) == 0.75
