"""Every aggregator against its plain definition, however the tokens are cut into chunks."""

from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitors.aggregate import AGGREGATORS, BY_ATTENTION, ELEMENTWISE, AggregatorSpec

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


def attention(q, v):
    """Of one head: sum_t exp(q_t) v_t / sum_t exp(q_t)."""
    weights = np.exp(q - np.max(q))
    return np.sum(weights * v) / np.sum(weights)


def rolling_attention(q, v):
    if len(q) < WINDOW:
        return attention(q, v)
    return max(attention(q[i : i + WINDOW], v[i : i + WINDOW]) for i in range(len(q) - WINDOW + 1))


PLAIN_OF_HEADS = {  # all logits and values of one head so far -> the aggregate
    AggregatorSpec("attention"): attention,
    AggregatorSpec("rolling_attention", window=WINDOW): rolling_attention,
}
SPECS = [*PLAIN, *PLAIN_OF_HEADS]


def test_every_aggregator_has_a_plain_definition_here():
    assert {spec.kind for spec in PLAIN} == ELEMENTWISE
    assert {spec.kind for spec in PLAIN_OF_HEADS} == BY_ATTENTION
    assert {spec.kind for spec in SPECS} == set(AGGREGATORS)


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


logit = st.floats(-5, 5) | st.floats(-1e4, 1e4)  # exp(1e4) is beyond any float
token = st.tuples(logit, logit, st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))  # two heads: q, q, v, v
texts = st.lists(token, min_size=1, max_size=30).map(np.array)


def run_heads(spec, z, chunk_sizes):
    """[n, 4] -> [n, 2], in chunks."""
    state = spec.start(4)
    out, start = [], 0
    for size in chunk_sizes:
        piece = z[start : start + size].copy()
        if len(piece):
            out.append(state.update(piece).copy())
        start += size
        state = deepcopy(state)
    return np.concatenate(out)


def plain_heads(spec, z):
    return [
        [PLAIN_OF_HEADS[spec](z[: t + 1, head], z[: t + 1, 2 + head]) for head in (0, 1)]
        for t in range(len(z))
    ]


@pytest.mark.parametrize("spec", PLAIN_OF_HEADS, ids=lambda spec: spec.kind)
@given(z=texts, chunk_sizes=chunks)
def test_each_head_equals_its_plain_definition(spec, z, chunk_sizes):
    with np.errstate(all="raise", under="ignore"):
        out = run_heads(spec, z, chunk_sizes)
    np.testing.assert_allclose(out, plain_heads(spec, z), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(out, run_heads(spec, z, [len(z)]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", [1, 2, 50, 70_000])
def test_a_rolling_attention_of_any_window_over_a_long_chunk(window):
    z = np.random.default_rng(0).normal(size=(300, 4)) * 3
    spec = AggregatorSpec("rolling_attention", window=window)
    out = spec.start(4).update(z.copy())
    for t in (0, 1, 48, 49, 50, 299):
        ends = range(min(window, t + 1), t + 2)
        plain = max(attention(z[max(0, e - window) : e, 1], z[max(0, e - window) : e, 3]) for e in ends)
        assert out[t, 1] == pytest.approx(plain, rel=1e-12)


def test_a_window_that_is_not_full_does_not_stand_in_the_maximum():
    z = np.array([[0.0, 9.0], *[[0.0, 1.0]] * 5])  # one head, all logits alike: means
    out = AggregatorSpec("rolling_attention", window=WINDOW).start(2).update(z)
    assert out[:, 0] == pytest.approx([9, 5, 11 / 3, 3, 3, 3])


@given(z=texts, temperature=st.floats(0.5, 8))
def test_softmax_is_the_attention_whose_logits_are_the_values(z, temperature):
    values = z[:, 2:]
    soft = AggregatorSpec("softmax", temperature=temperature).start(2).update(values.copy())
    by_logits = AggregatorSpec("attention").start(4).update(np.hstack([values / temperature, values]))
    np.testing.assert_allclose(soft, by_logits, rtol=1e-12)


@given(z=texts)
def test_without_logits_to_tell_tokens_apart_attention_is_what_it_is_compared_with(z):
    z[:, :2] = 7.0
    for spec in PLAIN_OF_HEADS:
        weighed = spec.start(4).update(z.copy())
        plain = spec.unweighted.start(2).update(z[:, 2:].copy())
        np.testing.assert_allclose(weighed, plain, rtol=1e-12, atol=1e-9)


def test_what_treats_all_tokens_alike_is_compared_with_itself():
    assert all(spec.unweighted == spec for spec in PLAIN)


MERGEABLE = [spec for spec in SPECS if spec.kind in {"last", "mean", "max", "softmax", "attention"}]
SEQUENTIAL = [spec for spec in SPECS if spec not in MERGEABLE]


@pytest.mark.parametrize("spec", MERGEABLE, ids=lambda spec: spec.kind)
@given(before=texts, after=texts, rest=texts)
def test_a_merged_state_goes_on_as_if_the_tokens_had_followed(spec, before, after, rest):
    first, second, whole = spec.start(4), spec.start(4), spec.start(4)
    first.update(before.copy())
    second.update(after.copy())
    kept = deepcopy(second)
    first.merge(second)
    whole.update(np.concatenate([before, after]))
    expected = whole.update(rest.copy())
    np.testing.assert_allclose(first.update(rest.copy()), expected, rtol=1e-12, atol=1e-9)
    np.testing.assert_array_equal(second.update(rest.copy()), kept.update(rest.copy()))


@pytest.mark.parametrize("spec", MERGEABLE, ids=lambda spec: spec.kind)
@given(seen=texts, rest=texts)
def test_a_state_that_saw_nothing_adds_nothing(spec, seen, rest):
    plain, first, empty = spec.start(4), spec.start(4), spec.start(4)
    for state in (plain, first):
        state.update(seen.copy())
    first.merge(spec.start(4))
    empty.merge(spec.start(4))
    empty.merge(first)
    expected = plain.update(rest.copy())
    np.testing.assert_allclose(first.update(rest.copy()), expected, rtol=1e-12)
    np.testing.assert_allclose(empty.update(rest.copy()), expected, rtol=1e-12)


@pytest.mark.parametrize("spec", SEQUENTIAL, ids=lambda spec: spec.kind)
def test_what_depends_on_the_seam_says_why_it_is_not_merged(spec):
    with pytest.raises(ValueError, match=r"states can't be merged: .*\. Keep the later tokens' values"):
        spec.start(4).merge(spec.start(4))


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
        ("rolling_attention", {}, "wrong parameters"),
        ("rolling_attention", {"window": 0}, "window is 0"),
        ("attention", {"window": 3}, "wrong parameters"),
        ("median", {}, "unknown aggregator 'median'; known: last"),
    ],
)
def test_wrong_parameters_are_refused(kind, params, message):
    with pytest.raises(ValueError, match=message):
        AggregatorSpec(kind, **params)


@pytest.mark.parametrize("spec", PLAIN_OF_HEADS, ids=lambda spec: spec.kind)
def test_attention_needs_a_logit_for_each_value(spec):
    with pytest.raises(ValueError, match="which 3 values are not"):
        spec.start(3)
