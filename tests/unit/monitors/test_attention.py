"""Heads that look for the tokens that matter, from a row of the residual stream to the score."""

import numpy as np
import pytest
import torch

from monitors.aggregate import AggregatorSpec
from monitors.attention import Attention, MultiMax
from monitors.bank import Bank
from monitors.base import Link, Monitor
from monitors.front import Front
from monitors.linear import Linear
from monitors.tracker import TrackerPlan
from monitors.types import HookPoint

D, POINT = 6, HookPoint(1)
WINDOW = 4


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FRONT = Front((randn(5, D, seed=1), randn(4, 5, seed=2)), (randn(5, seed=3), randn(4, seed=4)))
ATTENTION = Attention(POINT, randn(3, 4, seed=5), randn(3, 4, seed=6), randn(3, seed=7), FRONT)
BARE_ATTENTION = Attention(POINT, randn(1, D, seed=5), randn(1, D, seed=6), randn(1, seed=7))
MULTIMAX = MultiMax(POINT, randn(3, 4, seed=6), randn(3, seed=7), FRONT)
BARE_MULTIMAX = MultiMax(POINT, randn(1, D, seed=6), randn(1, seed=7))

MONITORS = [
    Monitor("attention", ATTENTION, AggregatorSpec("attention"), Link.SIGMOID),
    Monitor("neighbour", Linear((POINT,), randn(1, D, seed=8), randn(1, seed=9))),
    Monitor("rolling", ATTENTION, AggregatorSpec("rolling_attention", window=WINDOW)),
    Monitor("bare", BARE_ATTENTION, AggregatorSpec("attention"), exclude_first=2),
    Monitor("multimax", MULTIMAX, AggregatorSpec("max")),
    Monitor("bare_multimax", BARE_MULTIMAX, AggregatorSpec("max")),
    Monitor("soft", MULTIMAX, AggregatorSpec("softmax", temperature=2.0)),
]
HEADS = [monitor for monitor in MONITORS if monitor.name != "neighbour"]


def attention(q, v):
    weights = np.exp(q - q.max(axis=0))
    return (weights * v).sum(axis=0) / weights.sum(axis=0)


def plain(monitor, x):
    """The score after the rows x, straight from the formulas."""
    transform, x = monitor.transform, x.double().numpy()[monitor.exclude_first :]
    if transform.front:
        for weight, bias in zip(transform.front.weights, transform.front.biases, strict=True):
            x = np.maximum(x @ weight.double().numpy().T + bias.double().numpy(), 0)
    v = x @ transform.value.double().numpy().T + transform.value_bias.double().numpy()
    q = x @ transform.query.double().numpy().T if isinstance(transform, Attention) else None
    match monitor.aggregator.kind:
        case "attention":
            score = attention(q, v).sum()
        case "rolling_attention":
            starts = range(max(1, len(v) - WINDOW + 1))
            means = [attention(q[i : i + WINDOW], v[i : i + WINDOW]) for i in starts]
            score = np.max(means, axis=0).sum()
        case "max":
            score = v.max(axis=0).sum()
        case "softmax":
            score = attention(v / 2.0, v).sum()
    return 1 / (1 + np.exp(-score)) if monitor.link is Link.SIGMOID else score


def scores(monitors, x, cuts=()):
    bank = Bank(monitors, "cpu")
    tracker = TrackerPlan(monitors).prompt()
    found = []
    for rows in torch.tensor_split(x, list(cuts)):
        buffer = bank.begin(len(rows))
        bank.read(POINT, rows, buffer)
        found.append(tracker.push(bank.end(buffer).numpy()))
    return np.concatenate(found)


@pytest.mark.parametrize("cuts", [(), (1, 2, 9), range(1, 20)], ids=["whole", "chunks", "one by one"])
def test_scores_are_the_formula_over_the_tokens_so_far(cuts):
    x = randn(20, D, seed=0)
    found = scores(MONITORS, x, cuts)
    for column, monitor in enumerate(MONITORS):
        if monitor in HEADS:
            first = monitor.exclude_first
            assert (found[:first, column] == -np.inf).all()
            expected = [plain(monitor, x[: t + 1]) for t in range(first, 20)]
            assert found[first:, column] == pytest.approx(expected, rel=1e-5, abs=1e-5), monitor.name


@pytest.mark.parametrize("monitor", HEADS, ids=lambda monitor: monitor.name)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_bad_row_fails_the_monitor_from_there_on(monitor, bad):
    x = randn(9, D, seed=0)
    x[5, 3] = bad
    found = scores([monitor], x)[:, 0]
    assert np.isnan(found).tolist() == [False] * 5 + [True] * 4


@pytest.mark.parametrize("value", range(6))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_value_of_any_head_fails_the_monitor_and_no_other(value, bad):
    pair = [MONITORS[0], MONITORS[1]]
    values = np.ones((4, 7), dtype=np.float32)
    values[2, value] = bad
    tracker = TrackerPlan(pair).response()
    found = tracker.push(values)
    assert np.isnan(found).tolist() == [[False, False], [False, False], [True, False], [True, False]]
    resumed = TrackerPlan(pair).response()
    resumed.restore(tracker.snapshot())
    assert np.isnan(resumed.push(np.ones((1, 7), dtype=np.float32))).tolist() == [[True, False]]


def test_a_snapshot_goes_on_as_the_tracker_would_have():
    x = randn(15, D, seed=0)
    bank, plan = Bank(MONITORS, "cpu"), TrackerPlan(MONITORS)
    buffer = bank.begin(15)
    bank.read(POINT, x, buffer)
    values = bank.end(buffer).numpy()
    whole = plan.prompt().push(values)
    tracker = plan.prompt()
    tracker.push(values[:6])
    state = tracker.snapshot()
    tracker.push(-values)
    tracker.restore(state)
    np.testing.assert_allclose(tracker.push(values[6:]), whole[6:], rtol=1e-12)


def test_queries_that_tell_no_tokens_apart_give_the_mean_of_a_linear_probe():
    x = randn(12, D, seed=0)
    value, bias = randn(1, D, seed=1), randn(1, seed=2)
    attentive = Monitor("a", Attention(POINT, torch.zeros(1, D), value, bias), AggregatorSpec("attention"))
    linear = Monitor("b", Linear((POINT,), value, bias), AggregatorSpec("mean"))
    np.testing.assert_allclose(scores([attentive], x), scores([linear], x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("transform", [ATTENTION, BARE_ATTENTION, MULTIMAX, BARE_MULTIMAX])
def test_a_kind_is_what_its_tensors_say(transform):
    restored = type(transform).restore((POINT,), transform.tensors, transform.params)
    assert (restored.d_model, restored.num_values) == (D, transform.num_values)
    x = randn(4, D, seed=0)
    assert torch.equal(restored.evaluate(x), transform.evaluate(x))


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        (Attention, {"query": (2, 4)}, r"'value' has shape \[3, 4\]; needs \[2, 4\]"),
        (Attention, {"query": (3, D), "value": (3, D)}, r"'query' has shape \[3, 6\]; needs \[heads, 4\]"),
        (Attention, {"value_bias": (1,)}, r"'value_bias' has shape \[1\]; needs \[3\]"),
        (Attention, {"front.2.weight": (4, 4), "front.2.bias": (4,)}, "needs exactly front.0.bias"),
        (Attention, {"query": None}, "needs exactly .*query"),
        (Attention, {"query": (0, 4), "value": (0, 4), "value_bias": (0,)}, "has no heads"),
        (MultiMax, {"query": (3, 4)}, "needs exactly"),
        (MultiMax, {"value": (2, 4)}, r"'value_bias' has shape \[3\]; needs \[2\]"),
        (MultiMax, {"value": (0, 4), "value_bias": (0,)}, "has no heads"),
        (MultiMax, {"front.1.weight": (0, 5), "front.1.bias": (0,), "value": (3, 0)}, "no values"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(kind, change, told):
    tensors = dict((ATTENTION if kind is Attention else MULTIMAX).tensors)
    for name, shape in change.items():
        if shape is None:
            del tensors[name]
        else:
            tensors[name] = torch.ones(shape)
    with pytest.raises(ValueError, match=told):
        kind.restore((POINT,), tensors, {})


@pytest.mark.parametrize(
    ("transform", "aggregator", "allowed"),
    [
        (ATTENTION, AggregatorSpec("mean"), "attention, rolling_attention"),
        (MULTIMAX, AggregatorSpec("attention"), "ema, last, max"),
    ],
)
def test_an_aggregator_that_makes_no_sense_of_the_values_is_refused(transform, aggregator, allowed):
    with pytest.raises(ValueError, match=f"can't be aggregated by .*; allowed: {allowed}"):
        Monitor("x", transform, aggregator)
