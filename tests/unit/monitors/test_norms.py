"""Sampled norms are those of the rows."""

import pytest
import torch

from monitors.norms import SAMPLE_EVERY, NormMeter
from monitors.types import HookPoint

POINT = HookPoint(0)


def test_mean_and_deviation_are_those_of_the_sampled_rows():
    meter = NormMeter([POINT], torch.device("cpu"))
    passes = [torch.randn(5, 8) * (i + 1) for i in range(2 * SAMPLE_EVERY)]
    for rows in passes:
        meter.begin()
        meter.read(POINT, rows)
    logs = torch.cat([passes[0], passes[SAMPLE_EVERY]]).norm(dim=1).log().double()
    found = meter.summary()[POINT]
    assert found.num_rows == 10
    assert found.mean == pytest.approx(logs.mean().item(), rel=1e-6)
    assert found.std == pytest.approx(logs.std(correction=0).item(), rel=1e-6)


def test_rows_without_a_norm_are_left_out_and_unknown_points_ignored():
    meter = NormMeter([POINT], torch.device("cpu"))
    meter.begin()
    meter.read(POINT, torch.tensor([[0.0, 0.0], [torch.nan, 1.0], [3.0, 4.0]]))
    meter.read(HookPoint(1), torch.ones(1, 2))
    assert meter.summary().keys() == {POINT}
    assert meter.summary()[POINT].num_rows == 1
    assert meter.summary()[POINT].mean == pytest.approx(torch.tensor(5.0).log().item())


def test_nothing_read_is_nothing_said():
    assert NormMeter([POINT], torch.device("cpu")).summary() == {}
