"""The compiled bank against each monitor's plain formula."""

import pytest
import torch

from monitors.aggregate import AggregatorSpec
from monitors.bank import Bank
from monitors.base import Column, Monitor, Rectifier, Scale
from monitors.direction import Cosine
from monitors.linear import Linear
from monitors.sae_feature import SaeFeature
from monitors.types import HookKind, HookPoint

D = 16
POINTS = (HookPoint(0), HookPoint(1, HookKind.RESID_PRE), HookPoint(2))


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sae_feature(point, scale, rectifier, seed):
    return SaeFeature(point, 0, randn(D, seed=seed), 0.1, randn(D, seed=seed + 1), scale, rectifier)


def zoo():
    monitors = [
        Monitor("wide", Linear(POINTS, randn(3, D, seed=1), torch.tensor([0.7]))),
        Monitor("single", Linear(POINTS[1:2], randn(1, D, seed=2), torch.tensor([-2.0]))),
        Monitor("narrow", Linear(POINTS[:2], randn(2, D, seed=3), torch.tensor([0.3]))),
        Monitor("cosine", Cosine(POINTS[0], randn(D, seed=4))),
    ]
    rectifiers = [Rectifier(), Rectifier(0.8), Rectifier(-0.8), Rectifier(-0.4, 1.7, 0.2)]
    for index, (scale, rectifier) in enumerate((s, r) for s in Scale for r in rectifiers):
        feature = sae_feature(POINTS[index % 3], scale, rectifier, 10 * index)
        monitors.append(Monitor(f"feature_{index}", feature))
    return monitors


def read(bank, x, points=POINTS):
    buffer = bank.begin(len(next(iter(x.values()))))
    for point in points:
        bank.read(point, x[point], buffer)
    return bank.end(buffer)


def plain(column: Column, x):
    """Straight from the formulas, in float64."""
    x, w = x.double(), column.weight.double()
    match column.scale:
        case Scale.NONE:
            r = torch.ones(len(x), dtype=torch.float64)
        case Scale.UNIT:
            r = 1 / x.norm(dim=1)
        case Scale.SQRT_D:
            r = D**0.5 / x.norm(dim=1)
        case Scale.LAYER_NORM:
            r = 1 / (x.std(dim=1) + 1e-5)
    p = (x @ w) * r + column.bias
    f = column.rectifier
    return p if f is None else torch.relu(f.gain * p + f.offset) * (p > f.threshold)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_plain_formula_of_each_monitor(dtype):
    x = {point: randn(7, D, seed=100 + i).to(dtype) for i, point in enumerate(POINTS)}
    bank = Bank(zoo(), "cpu")
    values = read(bank, x)
    assert values.dtype == torch.float32
    assert values.shape == (7, bank.num_columns)
    assert [m.name for m in bank.monitors] == [m.name for m in zoo()]
    for column, m in enumerate(bank.monitors):
        expected = sum(plain(c, x[c.hook_point]) for c in m.transform.columns)
        torch.testing.assert_close(values[:, column].double(), expected, rtol=1e-5, atol=1e-5, msg=m.name)


def test_a_single_row_equals_the_same_row_in_a_batch():
    x = {point: randn(32, D, seed=i) for i, point in enumerate(POINTS)}
    bank = Bank(zoo(), "cpu")
    alone = read(bank, {point: rows[5:6] for point, rows in x.items()})
    torch.testing.assert_close(read(bank, x)[5:6], alone, rtol=1e-5, atol=1e-5)


def test_a_hook_point_that_was_not_read_fails_its_monitors_and_only_those():
    x = {point: randn(3, D, seed=i) for i, point in enumerate(POINTS)}
    bank = Bank(zoo(), "cpu")
    values = read(bank, x, POINTS[:2])
    for column, m in enumerate(bank.monitors):
        missing = any(c.hook_point == POINTS[2] for c in m.transform.columns)
        assert values[:, column].isnan().all().item() is missing, m.name
        assert values[:, column].isnan().any().item() is missing, m.name


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_activation_never_looks_like_a_low_score(bad):
    x = {point: randn(3, D, seed=i) for i, point in enumerate(POINTS)}
    for rows in x.values():
        rows[1, 4] = bad
    values = read(Bank(zoo(), "cpu"), x)
    assert values.isfinite().all(dim=1).tolist() == [True, False, True]
    assert not values[1].isfinite().any()


def test_the_columns_of_one_hook_point_are_one_matmul():
    bank = Bank(
        [Monitor(f"p{i}", Linear(POINTS[:1], randn(1, D, seed=i), torch.zeros(1))) for i in range(5)], "cpu"
    )
    assert bank.hook_points == POINTS[:1]
    with torch.profiler.profile() as profile:
        read(bank, {POINTS[0]: randn(2, D, seed=0)}, POINTS[:1])
    assert sum(event.count for event in profile.key_averages() if event.key == "aten::addmm") == 1


def test_an_empty_bank_has_no_values():
    bank = Bank([], "cpu")
    assert bank.end(bank.begin(4)).shape == (4, 0)


def test_the_digest_changes_with_anything_that_changes_a_score():
    def bank_of(weight=1.0, bias=0.0, aggregator="mean", exclude_first=0):
        probe = Linear(POINTS[:1], torch.full((1, D), weight), torch.tensor([bias]))
        return Bank(
            [Monitor("p", probe, AggregatorSpec(aggregator), exclude_first=exclude_first)], "cpu"
        ).digest

    digests = [
        bank_of(),
        bank_of(2.0),
        bank_of(bias=1.0),
        bank_of(aggregator="max"),
        bank_of(exclude_first=1),
    ]
    assert len(set(digests)) == len(digests)
    assert bank_of() == digests[0]
