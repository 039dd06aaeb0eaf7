"""Columns by their formula, and what a monitor's parts must look like."""

import pytest
import torch

from monitors.base import Column, Monitor, Rectifier, Scale, expect_tensors
from monitors.linear import Linear
from monitors.types import HookPoint

X = torch.tensor([[1.0, 2.0, 3.0, 6.0], [0.0, -4.0, 0.0, 0.0]])
PROBE = Linear((HookPoint(0),), torch.ones(1, 4), torch.zeros(1))


@pytest.mark.parametrize(
    ("scale", "factor"),
    [
        (Scale.NONE, [1, 1]),
        (Scale.UNIT, [1 / 50**0.5, 1 / 4]),
        (Scale.SQRT_D, [2 / 50**0.5, 2 / 4]),
        (Scale.LAYER_NORM, [1 / ((14 / 3) ** 0.5 + 1e-5), 1 / (2 + 1e-5)]),
    ],
)
def test_scales(scale, factor):
    assert scale.of(X)[:, 0].tolist() == pytest.approx(factor)


def test_a_column_is_scaled_then_shifted_then_rectified():
    weight = torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert Column(HookPoint(0), weight, bias=0.5).evaluate(X).tolist() == [3.5, -3.5]
    rectified = Column(HookPoint(0), weight, 0.5, Scale.UNIT, Rectifier(threshold=0.1, gain=2.0, offset=1.0))
    assert rectified.evaluate(X).tolist() == pytest.approx([2 * (3 / 50**0.5 + 0.5) + 1, 0.0])


def test_a_threshold_is_not_reached_by_its_own_value():
    column = Column(HookPoint(0), torch.tensor([1.0, 0, 0, 0]), rectifier=Rectifier(threshold=1.0))
    assert column.evaluate(X).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", ["", "1st", "a.b", "a-b", "x" * 65])
def test_a_name_that_a_policy_cannot_write(name):
    with pytest.raises(ValueError, match="so that policies can write it"):
        Monitor(name, PROBE)


def test_a_negative_scope():
    with pytest.raises(ValueError, match="exclude_first is -1"):
        Monitor("p", PROBE, exclude_first=-1)


def test_sizes_of_one_name_must_agree():
    shapes = {"a": ("d",), "b": (2, "d")}
    expect_tensors({"a": torch.ones(3), "b": torch.ones(2, 3)}, shapes)
    with pytest.raises(ValueError, match=r"tensor 'b' has shape \[2, 4\]; needs \[2, 3\]"):
        expect_tensors({"a": torch.ones(3), "b": torch.ones(2, 4)}, shapes)
