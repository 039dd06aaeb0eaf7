"""Truncated polynomial classifiers."""

import numpy as np
import pytest
import torch

from monitors.aggregate import AggregatorSpec
from monitors.bank import Bank
from monitors.base import Monitor
from monitors.polynomial import Polynomial
from monitors.tracker import TrackerPlan
from monitors.types import HookPoint

POINT, D = HookPoint(0), 6


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def polynomial(degree=4, rank=3):
    num = 1 + (degree - 1) * rank
    return Polynomial(POINT, randn(num, D, seed=1), randn(num, seed=2), randn(degree - 1, rank, seed=3))


def scores(transform, x, aggregator):
    monitor = Monitor("m", transform, AggregatorSpec(aggregator))
    bank = Bank([monitor], "cpu")
    buffer = bank.begin(len(x))
    bank.read(POINT, x, buffer)
    return TrackerPlan([monitor]).response().push(bank.end(buffer).numpy())[:, 0]


def plain(transform, row):
    """Term by term, in float64."""
    y = transform.projections.double() @ row + transform.offsets.double()
    found, place = float(y[0]), 1
    for k, own in enumerate(transform.coefficients.double(), 2):
        for coefficient in own:
            found += float(coefficient * y[place] ** k)
            place += 1
    return found


@pytest.mark.parametrize(("degree", "rank"), [(2, 1), (3, 4), (5, 2)])
def test_is_the_polynomial_of_the_mean_row_so_far_or_of_the_last(degree, rank):
    x, transform = randn(7, D, seed=0), polynomial(degree, rank)
    means = [x[: t + 1].double().mean(dim=0) for t in range(7)]
    np.testing.assert_allclose(
        scores(transform, x, "mean"), [plain(transform, m) for m in means], rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        scores(transform, x, "last"), [plain(transform, row) for row in x.double()], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_row_fails_the_monitor(bad):
    x = randn(4, D, seed=0)
    x[1, 2] = bad
    found = scores(polynomial(), x, "mean")
    assert np.isfinite(found).tolist() == [True, False, False, False]


def test_a_huge_row_overflows_no_power():
    found = scores(polynomial(5), torch.full((1, D), 1e37), "mean")
    assert np.isfinite(found).all()


def test_what_makes_no_sense_of_powers_is_refused():
    with pytest.raises(
        ValueError, match="kind 'polynomial' can't be aggregated by 'max'; allowed: last, mean"
    ):
        Monitor("m", polynomial(), AggregatorSpec("max"))


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        ((5, 2), "degree is 6, must be 2 to 5"),
        ((0, 2), "degree is 1"),
        ((3, 2), "needs the linear one and 6"),
    ],
)
def test_tensors_that_are_no_polynomial_are_refused(coefficients, message):
    tensors = {**polynomial().tensors, "coefficients": torch.ones(coefficients)}
    with pytest.raises(ValueError, match=message):
        Polynomial.restore((POINT,), tensors, {})
