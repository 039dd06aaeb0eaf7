"""MLP monitors."""

import pytest
import torch

from monitors.aggregate import AggregatorSpec
from monitors.bank import Bank
from monitors.base import Monitor
from monitors.front import Front
from monitors.mlp import Mlp
from monitors.types import HookPoint

POINT, D = HookPoint(0), 6


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mlp(layers=2):
    front = Front(
        (randn(5, D, seed=1), randn(4, 5, seed=2))[:layers], (randn(5, seed=3), randn(4, seed=4))[:layers]
    )
    return Mlp(POINT, front, randn(front.width, seed=5), randn(1, seed=6))


def bank_values(transform, x):
    bank = Bank([Monitor("m", transform, AggregatorSpec("mean"))], "cpu")
    buffer = bank.begin(len(x))
    bank.read(POINT, x, buffer)
    return bank.end(buffer)


@pytest.mark.parametrize("layers", [1, 2])
def test_equals_its_formula(layers):
    x, net = randn(7, D, seed=0), mlp(layers)
    y = x.double()
    for weight, bias in zip(net.front.weights, net.front.biases, strict=True):
        y = (y @ weight.double().T + bias.double()).clamp(min=0)
    expected = y @ net.weight.double() + net.bias.double()
    torch.testing.assert_close(bank_values(net, x)[:, 0].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_row_is_never_a_low_score_though_relu_makes_zero_of_minus_infinity(bad):
    blocking = Mlp(POINT, Front((-torch.ones(3, D),), (torch.zeros(3),)), torch.ones(3), torch.zeros(1))
    x = randn(3, D, seed=0)
    x[1, 2] = bad
    for net in (mlp(), blocking):
        assert bank_values(net, x).isfinite()[:, 0].tolist() == [True, False, True]


def test_without_a_hidden_layer_it_is_refused():
    with pytest.raises(ValueError, match=r"needs exactly bias, front\.0\.bias, front\.0\.weight, weight"):
        Mlp.restore((POINT,), {"weight": torch.ones(D), "bias": torch.ones(1)}, {})


def test_layers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"tensor 'weight' has shape \[4\]; needs \[5\]"):
        Mlp.restore((POINT,), {**mlp(1).tensors, "weight": torch.ones(4)}, {})
