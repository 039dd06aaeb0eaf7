"""The layers that kinds share before their own."""

import pytest
import torch

from monitors.base import expect_tensors
from monitors.front import Front, front_shapes


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ONE = Front((randn(5, 4, seed=0),), (randn(5, seed=1),))
TWO = Front((randn(5, 4, seed=0), randn(3, 5, seed=2)), (randn(5, seed=1), randn(3, seed=3)))


@pytest.mark.parametrize("front", [ONE, TWO], ids=["one layer", "two layers"])
def test_equals_its_formula_and_survives_its_tensors(front):
    x = randn(6, 4, seed=9)
    y = x.double()
    for weight, bias in zip(front.weights, front.biases, strict=True):
        y = (y @ weight.double().T + bias.double()).clamp(min=0)
    torch.testing.assert_close(front.evaluate(x).double(), y, rtol=1e-5, atol=1e-5)
    assert (front.d_model, front.width) == (4, y.shape[1])
    shapes, width = front_shapes(front.tensors)
    expect_tensors({**front.tensors, "v": torch.ones(front.width)}, {**shapes, "v": (width,)})
    torch.testing.assert_close(Front.restore(front.tensors).evaluate(x), front.evaluate(x), rtol=0, atol=0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("front", [ONE, TWO], ids=["one layer", "two layers"])
def test_a_bad_row_stays_bad_though_relu_makes_zero_of_minus_infinity(front, bad):
    blocking = Front(tuple(-w.abs() for w in front.weights), front.biases)
    x = randn(3, 4, seed=9)
    x[1, 2] = bad
    for one in (front, blocking):
        y = one.evaluate(x)
        assert y.isfinite().all(dim=1).tolist() == [True, False, True]
        assert y[1].isnan().all()


def test_a_sum_that_overflows_is_not_a_zero():
    front = Front((torch.full((2, 4), -10.0),), (torch.zeros(2),))
    assert front.evaluate(torch.full((1, 4), 3e38)).isnan().all()


def test_no_front():
    assert Front.restore({"weight": torch.ones(2)}) is None
    assert front_shapes({"weight": torch.ones(2)}) == ({}, "d_model")


@pytest.mark.parametrize(
    ("weights", "biases", "message"),
    [
        ([], [], "one or two layers"),
        ([(2, 2)] * 3, [(2,)] * 3, "not 3 weights and 3 biases"),
        ([(0, 2)], [(0,)], "no values"),
        ([(2, 2)], [], "1 weights and 0 biases"),
        ([(2, 4), (3, 5)], [(2,), (3,)], "2 values, then weights for 5"),
    ],
)
def test_layers_that_do_not_fit_are_refused(weights, biases, message):
    with pytest.raises(ValueError, match=message):
        Front(tuple(map(torch.ones, weights)), tuple(map(torch.ones, biases)))


@pytest.mark.parametrize(
    "change", [{"front.2.weight": (3, 3)}, {"front.0.bias": (4,)}, {"front.1.bias": None}]
)
def test_tensors_that_do_not_fit_are_refused(change):
    tensors = {**TWO.tensors, **{name: torch.ones(shape) for name, shape in change.items() if shape}}
    tensors = {name: tensor for name, tensor in tensors.items() if change.get(name, ()) is not None}
    with pytest.raises(ValueError, match="needs"):
        expect_tensors(tensors, front_shapes(tensors)[0])
