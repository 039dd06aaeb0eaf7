"""Distances from benign rows."""

import pytest
import torch

from monitors.aggregate import AggregatorSpec
from monitors.bank import Bank
from monitors.base import Monitor
from monitors.novelty import Novelty
from monitors.types import HookPoint

POINT, D = HookPoint(0), 8


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def novelty(rank=3):
    basis = torch.linalg.qr(randn(D, D, seed=1)).Q.T[:rank]
    return Novelty(
        POINT,
        10 * randn(D, seed=2),
        randn(D, seed=3).exp(),
        basis,
        randn(rank, seed=4).exp(),
        torch.tensor([0.3]),
    )


def values(transform, x):
    bank = Bank([Monitor("m", transform, AggregatorSpec("max"))], "cpu")
    buffer = bank.begin(len(x))
    bank.read(POINT, x, buffer)
    return bank.end(buffer)[:, 0]


def plain(n, x):
    """By the inverse of the whole covariance, in float64."""
    u, std = n.basis.double(), n.std.double()
    of_rest = n.residual_variance.double() * (torch.eye(D) - u.T @ u)
    covariance = std[:, None] * (u.T @ torch.diag(n.variance.double()) @ u + of_rest) * std
    centred = x.double() - n.mean.double()
    squared = (centred @ torch.linalg.inv(covariance) * centred).sum(dim=1)
    return (squared / D).sqrt()


@pytest.mark.parametrize("rank", [1, 3, D])
def test_is_the_mahalanobis_distance_per_dimension(rank):
    n, x = novelty(rank), 10 * randn(20, D, seed=0)
    torch.testing.assert_close(values(n, x).double(), plain(n, x), rtol=1e-4, atol=1e-4)


def test_nothing_cancels_where_rows_are_long_and_lie_in_the_subspace():
    n = novelty()
    inside = n.mean + n.std * (1000 * n.basis[0])
    expected = 1000 / n.variance[0].sqrt() / D**0.5
    torch.testing.assert_close(values(n, inside[None])[0], expected, rtol=1e-3, atol=0)
    assert values(n, n.mean[None])[0] == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_row_is_not_near(bad):
    x = randn(3, D, seed=0)
    x[1, 2] = bad
    assert values(novelty(), x).isfinite().tolist() == [True, False, True]


def test_a_row_that_is_too_far_for_numbers_is_not_near():
    assert not values(novelty(), torch.full((1, D), 1e30)).isfinite().any()


@pytest.mark.parametrize("name", ["std", "variance", "residual_variance"])
def test_what_can_not_be_divided_by_is_refused(name):
    tensors = dict(novelty().tensors)
    tensors[name] = torch.zeros_like(tensors[name])
    with pytest.raises(ValueError, match=f"tensor '{name}' must be above 0"):
        Novelty.restore((POINT,), tensors, {})
