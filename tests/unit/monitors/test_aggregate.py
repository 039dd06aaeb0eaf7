"""Every aggregator against its plain definition, however the tokens are cut into chunks."""

from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitors.aggregate import AGGREGATORS, AggregatorSpec

EMA = AggregatorSpec("ema", alpha=0.3)
WINDOW = 4


def ema(z):
    """e_t = a z_t + (1 - a) e_(t-1), e_0 = 0."""
    e = 0.0
    for value in z:
        e = 0.3 * value + 0.7 * e
    return e


def max_rolling_mean(z):
    if len(z) < WINDOW:
        return np.mean(z)
    return max(np.mean(z[i : i + WINDOW]) for i in range(len(z) - WINDOW + 1))


def softmax(z):
    weights = np.exp((z - np.max(z)) / 5)
    return np.sum(weights * z) / np.sum(weights)


PLAIN = {  # all values so far -> the aggregate
    AggregatorSpec("last"): lambda z: z[-1],
    AggregatorSpec("mean"): np.mean,
    AggregatorSpec("max"): np.max,
    EMA: ema,
    AggregatorSpec("softmax", temperature=5.0): softmax,
    AggregatorSpec("rolling_mean", window=WINDOW): lambda z: np.mean(z[-WINDOW:]),
    AggregatorSpec("max_rolling_mean", window=WINDOW): max_rolling_mean,
}

series = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30)
chunks = st.lists(st.integers(1, 7), min_size=30, max_size=30)


def run(spec, z, chunk_sizes):
    """Two monitors: z, and z reversed in sign."""
    state = spec.start(2)
    values = np.stack([z, -np.array(z)], axis=1)
    out, start = [], 0
    for size in chunk_sizes:
        piece = values[start : start + size].copy()
        if len(piece):
            state.update(piece)
            out.append(piece)
        start += size
        state = deepcopy(state)  # a snapshot goes on like the original
    return np.concatenate(out)


def test_every_aggregator_has_a_plain_definition_here():
    assert {spec.kind for spec in PLAIN} == set(AGGREGATORS)


@pytest.mark.parametrize("spec", PLAIN, ids=lambda spec: spec.kind)
@given(z=series, chunk_sizes=chunks)
def test_equals_its_plain_definition(spec, z, chunk_sizes):
    out = run(spec, z, chunk_sizes)
    for column, sign in enumerate((1, -1)):
        plain = [PLAIN[spec](sign * np.array(z[: t + 1])) for t in range(len(z))]
        np.testing.assert_allclose(out[:, column], plain, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("spec", PLAIN, ids=lambda spec: spec.kind)
@given(z=series, chunk_sizes=chunks)
def test_chunks_do_not_matter(spec, z, chunk_sizes):
    np.testing.assert_allclose(run(spec, z, chunk_sizes), run(spec, z, [len(z)]), rtol=1e-12, atol=1e-12)


MERGEABLE = [spec for spec in PLAIN if hasattr(spec.start(1), "merge")]


def test_what_can_be_merged_is_what_the_maths_allows():
    assert [spec.kind for spec in MERGEABLE] == ["last", "mean", "max", "softmax"]


@pytest.mark.parametrize("spec", MERGEABLE, ids=lambda spec: spec.kind)
@given(before=series, after=series, rest=series)
def test_a_merged_state_goes_on_as_if_the_tokens_had_followed(spec, before, after, rest):
    first, second = spec.start(1), spec.start(1)
    first.update(np.array(before)[:, None])
    second.update(np.array(after)[:, None])
    kept = deepcopy(second)
    first.merge(second)
    out = np.array(rest)[:, None]
    first.update(out)
    whole = [*before, *after]
    plain = [PLAIN[spec](np.array([*whole, *rest[: t + 1]])) for t in range(len(rest))]
    np.testing.assert_allclose(out[:, 0], plain, rtol=1e-12, atol=1e-9)
    untouched = np.array(rest)[:, None]
    kept.update(untouched)
    again = np.array(rest)[:, None]
    second.update(again)
    np.testing.assert_array_equal(again, untouched)


def test_a_huge_value_leaves_no_error_behind_in_a_window():
    z = np.array([1e16, *[0.1] * 12])[:, None]
    AggregatorSpec("rolling_mean", window=WINDOW).start(1).update(z)
    assert z[WINDOW:, 0] == pytest.approx(0.1, rel=1e-15)


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        ("ema", {}, "alpha"),
        ("ema", {"alpha": 0.0}, "alpha is 0.0"),
        ("rolling_mean", {"window": 0}, "window is 0"),
        ("softmax", {"temperature": 0.0}, "temperature is 0"),
        ("mean", {"window": 3}, "wrong parameters"),
        ("median", {}, "unknown aggregator 'median'; known: last"),
    ],
)
def test_wrong_parameters_are_refused(kind, params, message):
    with pytest.raises(ValueError, match=message):
        AggregatorSpec(kind, **params)
