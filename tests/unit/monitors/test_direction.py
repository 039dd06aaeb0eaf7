"""Cosine monitors."""

import pytest
import torch

from monitors.direction import Cosine
from monitors.types import HookPoint


def test_equals_the_cosine():
    torch.manual_seed(0)
    x, direction = torch.randn(6, 8), 7 * torch.randn(8)
    (column,) = Cosine(HookPoint(0), direction).columns
    torch.testing.assert_close(column.evaluate(x), torch.cosine_similarity(x, direction[None]))


def test_a_row_of_zeros_has_no_direction_and_fails():
    (column,) = Cosine(HookPoint(0), torch.ones(8)).columns
    assert column.evaluate(torch.zeros(1, 8)).isnan().all()


def test_a_direction_of_zeros_is_refused():
    with pytest.raises(ValueError, match="all zeros"):
        Cosine(HookPoint(0), torch.zeros(8))
