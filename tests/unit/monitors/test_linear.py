"""Linear probes."""

import torch

from monitors.linear import Linear
from monitors.types import HookPoint


def test_standardisation_folds_exactly():
    torch.manual_seed(0)
    weight, mean, std = torch.randn(2, 8), torch.randn(2, 8), torch.rand(2, 8) + 0.1
    x = torch.randn(2, 5, 8)
    probe = Linear.folded((HookPoint(0), HookPoint(3)), weight, 0.5, mean, std)
    expected = (((x - mean[:, None]) / std[:, None]) * weight[:, None]).sum(dim=(0, 2)) + 0.5
    found = sum(column.evaluate(rows) for column, rows in zip(probe.columns, x, strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_bias_counts_once():
    probe = Linear((HookPoint(0), HookPoint(1), HookPoint(2)), torch.zeros(3, 4), torch.tensor([0.75]))
    assert sum(column.bias for column in probe.columns) == 0.75
