"""Drift since the first user message, against its plain definition."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monitors.aggregate import AggregatorSpec
from monitors.base import Link, Monitor
from monitors.delta import Delta
from monitors.linear import Linear
from monitors.tracker import OUT_OF_SCOPE, TrackerPlan
from monitors.types import HookPoint

POINT = HookPoint(1)
BIAS = 0.25


def plan():
    delta = Delta((POINT,), torch.ones(1, 4), torch.tensor([BIAS]))
    linear = Linear((POINT,), torch.ones(1, 4), torch.zeros(1))
    return TrackerPlan([Monitor("plain", linear), Monitor("drift", delta, AggregatorSpec("mean"))])


@given(
    raw=st.lists(st.floats(-100, 100), min_size=1, max_size=12),
    reference=st.integers(0, 12),
    cut=st.integers(0, 12),
)
def test_scores_are_means_of_the_differences_to_the_reference_however_the_prompt_is_cut(raw, reference, cut):
    reference, values = min(reference, len(raw) - 1), np.array([raw, raw]).T
    tracker = plan().prompt(reference)
    scores = np.concatenate([tracker.push(values[:cut]), tracker.push(values[cut:])])
    assert scores[:, 0].tolist() == raw
    assert (scores[: reference + 1, 1] == OUT_OF_SCOPE).all()
    for last in range(reference + 1, len(raw)):
        drift = np.array(raw[reference + 1 : last + 1]) - raw[reference] + BIAS
        assert scores[last, 1] == pytest.approx(drift.mean(), abs=1e-9)


def test_a_response_drifts_from_the_prompts_reference():
    tracker = plan().response()
    tracker.refer(np.array([5.0, 2.0]))
    assert tracker.push(np.array([[1.0, 3.0]]))[0].tolist() == [1.0, 1.0 + BIAS]


def test_without_a_reference_the_monitor_fails_and_no_other_does():
    for tracker in (plan().prompt(), plan().response()):
        scores = tracker.push(np.ones((2, 2)))
        assert scores[:, 0].tolist() == [1.0, 1.0]
        assert np.isnan(scores[:, 1]).all()


def test_a_reference_that_is_not_finite_fails_all_that_follows():
    tracker = plan().prompt(0)
    scores = tracker.push(np.array([[1.0, np.nan], [1.0, 1.0], [1.0, 1.0]]))
    assert scores[0, 1] == OUT_OF_SCOPE
    assert np.isnan(scores[1:, 1]).all()


def test_a_snapshot_remembers_the_reference():
    tracker = plan().prompt(0)
    tracker.push(np.array([[0.0, 2.0], [0.0, 3.0]]))
    copy = tracker.copy()
    assert copy.push(np.array([[0.0, 6.0]]))[0, 1] == pytest.approx((1 + 4) / 2 + BIAS)


def test_a_sigmoid_follows():
    delta = Delta((POINT,), torch.ones(1, 4), torch.tensor([1.0]))
    tracker = TrackerPlan([Monitor("drift", delta, link=Link.SIGMOID)]).prompt(0)
    assert tracker.push(np.array([[2.0], [1.0]]))[1, 0] == pytest.approx(0.5)
