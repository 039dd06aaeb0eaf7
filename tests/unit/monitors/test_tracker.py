"""Raw values to scores: scope, links, failures, snapshots."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from monitors.aggregate import AggregatorSpec
from monitors.base import Link, Monitor
from monitors.linear import Linear
from monitors.tracker import OUT_OF_SCOPE, TrackerPlan
from monitors.types import HookPoint


def monitor(name, aggregator, link=Link.IDENTITY, exclude_first=0):
    probe = Linear((HookPoint(0),), torch.zeros(1, 2), torch.zeros(1))
    return Monitor(name, probe, aggregator, link, exclude_first)


MEAN, MAX, LAST = AggregatorSpec("mean"), AggregatorSpec("max"), AggregatorSpec("last")
PLAN = TrackerPlan(
    [
        monitor("a", MEAN, Link.SIGMOID, exclude_first=2),
        monitor("b", MAX),
        monitor("c", MEAN, Link.SIGMOID, exclude_first=2),  # same group as a, not adjacent
        monitor("d", LAST, exclude_first=1),
        monitor("e", AggregatorSpec("rolling_mean", window=3)),
    ]
)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def test_scores_link_and_scope():
    values = np.array(
        [[9.0, 1, 9, 9, 1], [9, 3, 9, 2, 2], [1, 2, -1, 3, 3], [3, 0, -3, 4, 7]], dtype=np.float32
    )
    tracker = PLAN.prompt()
    scores = tracker.push(values)
    out = OUT_OF_SCOPE
    assert tracker.first_in_scope.tolist() == [2, 0, 2, 1, 0]
    assert scores[:, 0] == pytest.approx([out, out, sigmoid(1), sigmoid(2)])
    assert scores[:, 1] == pytest.approx([1, 3, 3, 3])
    assert scores[:, 2] == pytest.approx([out, out, sigmoid(-1), sigmoid(-2)])
    assert scores[:, 3] == pytest.approx([out, 2, 3, 4])
    assert scores[:, 4] == pytest.approx([1, 1.5, 2, 4])
    assert tracker.maxima() == pytest.approx([sigmoid(2), 3, sigmoid(-1), 4, 4])


def test_the_response_is_in_scope_from_its_first_token():
    scores = PLAN.response().push(np.ones((1, 5), dtype=np.float32))
    assert scores[0] == pytest.approx([sigmoid(1), 1, sigmoid(1), 1, 1])


def test_nothing_in_scope_has_no_maximum():
    tracker = PLAN.prompt()
    tracker.push(np.ones((1, 5), dtype=np.float32))
    assert tracker.maxima().tolist() == [OUT_OF_SCOPE, 1, OUT_OF_SCOPE, OUT_OF_SCOPE, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_failure_is_nan_to_the_end_and_stays_with_its_monitor(bad):
    values = np.ones((5, 5), dtype=np.float32)
    values[2, [1, 4]] = bad
    whole, stepwise = PLAN.response(), PLAN.response()
    scores = whole.push(values)
    assert np.isnan(scores).sum(axis=0).tolist() == [0, 3, 0, 0, 3]
    np.testing.assert_array_equal(np.concatenate([stepwise.push(row[None]) for row in values]), scores)
    assert np.isnan(whole.maxima()).tolist() == [False, True, False, False, True]
    resumed = PLAN.response()
    resumed.restore(whole.snapshot())
    assert np.isnan(resumed.push(values[:1])[0]).tolist() == [False, True, False, False, True]


def test_what_is_out_of_scope_cannot_fail():
    values = np.ones((3, 5), dtype=np.float32)
    values[0, 0] = np.nan
    assert PLAN.prompt().push(values)[2, 0] == pytest.approx(sigmoid(1))


def test_the_sigmoid_neither_overflows_nor_loses_small_scores():
    plan = TrackerPlan([monitor("a", LAST, Link.SIGMOID)])
    scores = plan.response().push(np.array([[-1e30], [-700.0], [-40.0], [0.0], [1e30]], dtype=np.float32))
    assert scores[:, 0] == pytest.approx([0.0, np.exp(-700), np.exp(-40), 0.5, 1.0], rel=1e-12, abs=0)


def test_values_of_another_bank_are_an_error():
    with pytest.raises(ValueError, match=r"shape \(2, 6\); needs \[n, 5\]"):
        PLAN.prompt().push(np.ones((2, 6), dtype=np.float32))


def test_push_leaves_its_argument_alone():
    values = np.ones((3, 5), dtype=np.float64)
    PLAN.prompt().push(values)
    assert (values == 1).all()


@given(
    values=hnp.arrays(np.float32, (12, 5), elements=st.floats(-100, 100, width=32) | st.just(np.nan)),
    cut=st.integers(0, 12),
    second_cut=st.integers(0, 12),
)
def test_a_copy_and_a_restored_snapshot_go_on_alike(values, cut, second_cut):
    whole = PLAN.prompt().push(values)
    tracker = PLAN.prompt()
    tracker.push(values[:cut])
    snapshot = tracker.snapshot()
    copied = tracker.copy()
    tracker.push(values[: second_cut + 1])  # goes elsewhere; must not matter
    restored = PLAN.prompt()
    restored.restore(snapshot)
    np.testing.assert_allclose(copied.push(values[cut:]), whole[cut:], rtol=1e-12)
    np.testing.assert_allclose(restored.push(values[cut:]), whole[cut:], rtol=1e-12)
    restored.restore(snapshot)
    np.testing.assert_allclose(restored.push(values[cut:]), whole[cut:], rtol=1e-12)
