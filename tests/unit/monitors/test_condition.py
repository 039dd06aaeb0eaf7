"""CAST conditions."""

import numpy as np
import pytest
import torch

from monitors.aggregate import AggregatorSpec
from monitors.bank import Bank
from monitors.base import Monitor
from monitors.condition import Condition, MeanCondition
from monitors.tracker import TrackerPlan
from monitors.types import HookPoint

POINT, D = HookPoint(0), 8


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


C = 3 * randn(D, seed=1)


def scores(transform, x, aggregator):
    monitor = Monitor("m", transform, AggregatorSpec(aggregator))
    bank = Bank([monitor], "cpu")
    buffer = bank.begin(len(x))
    bank.read(POINT, x, buffer)
    return TrackerPlan([monitor]).response().push(bank.end(buffer).numpy())[:, 0]


def plain(h):
    """By the projector c c^T / c . c, as in the paper."""
    h, c = h.double(), C.double()
    projected = torch.tanh(torch.outer(c, c) / (c @ c) @ h)
    return float(h @ projected / (h.norm() * projected.norm()))


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_of_the_last_row_and_of_the_mean_row_so_far(scale):
    x = scale * randn(6, D, seed=0)
    np.testing.assert_allclose(
        scores(Condition(POINT, C), x, "last"), [plain(row) for row in x], rtol=1e-4, atol=1e-6
    )
    means = [x[: t + 1].double().mean(dim=0) for t in range(6)]
    np.testing.assert_allclose(
        scores(MeanCondition(POINT, C), x, "mean"), [plain(m) for m in means], rtol=1e-4, atol=1e-6
    )


def test_the_length_of_the_direction_does_not_matter():
    x = randn(6, D, seed=0)
    torch.testing.assert_close(Condition(POINT, 50 * C).evaluate(x), Condition(POINT, C).evaluate(x))


def test_a_condition_that_is_met_below_its_threshold_scores_high_there():
    x = randn(6, D, seed=0)
    assert torch.equal(Condition(POINT, C, -1).evaluate(x), -Condition(POINT, C).evaluate(x))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("kind", "aggregator"), [(Condition, "last"), (MeanCondition, "mean")])
def test_a_broken_row_fails_the_monitor(kind, aggregator, bad):
    x = randn(4, D, seed=0)
    x[1, 2] = bad
    found = scores(kind(POINT, C), x, aggregator)
    assert np.isfinite(found).tolist() == [True, False, False, False]


@pytest.mark.parametrize(("kind", "aggregator"), [(Condition, "last"), (MeanCondition, "mean")])
def test_a_row_of_zeros_has_no_direction_and_fails(kind, aggregator):
    assert np.isnan(scores(kind(POINT, C), torch.zeros(1, D), aggregator)).all()


def test_a_huge_row_is_no_low_score():
    x = randn(1, D, seed=0)
    huge = Condition(POINT, C).evaluate(1e30 * x)
    torch.testing.assert_close(huge, Condition(POINT, C).evaluate(1e6 * x))


@pytest.mark.parametrize(
    ("direction", "params", "message"),
    [
        (torch.zeros(D), {"sign": 1}, "all zeros"),
        (C, {"sign": 0}, "param 'sign' is 0, must be 1 or -1"),
        (C, {}, "param 'sign' is None, must be 1 or -1"),
    ],
)
def test_what_is_no_condition_is_refused(direction, params, message):
    with pytest.raises(ValueError, match=message):
        Condition.restore((POINT,), {"direction": direction}, params)
