"""Each aggregate against its plain definition, and bulk pushes against single ones."""

from itertools import groupby
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.functions import FUNCTIONS


def longest_run(xs):
    return max((len(list(group)) for passed, group in groupby(xs) if passed), default=0)


def ema(xs, window):
    average = 0.0
    for x in xs:
        average = (2 / (window + 1)) * x + (1 - 2 / (window + 1)) * average
    return average


PLAIN = {
    "max": max,
    "min": min,
    "mean": fmean,
    "last": lambda xs: xs[-1],
    "count": sum,
    "frac": fmean,
    "run": longest_run,
}

scores = st.lists(st.floats(-2, 2, width=32), max_size=60)
hits = st.lists(st.booleans(), max_size=60)


def stream_for(name):
    return hits if FUNCTIONS[name].over == "test" else scores


def window_for(name):
    return {"optional": st.integers(0, 12), "required": st.integers(1, 12), "refused": st.just(0)}[
        FUNCTIONS[name].takes_window
    ]


@pytest.mark.parametrize("name", FUNCTIONS)
@given(data=st.data())
def test_equals_its_plain_definition_at_every_token(name, data):
    xs, window, need = data.draw(stream_for(name)), data.draw(window_for(name)), data.draw(st.integers(1, 15))
    aggregate = FUNCTIONS[name](window, need)
    for seen, x in enumerate(xs, start=1):
        aggregate.push(x)
        recent = xs[max(0, seen - window) if window else 0 : seen]
        plain = ema(xs[:seen], window) if name == "ema" else PLAIN[name](recent)
        if seen < need:
            assert aggregate.value is None
        else:
            assert aggregate.value == pytest.approx(plain, abs=1e-9)


@pytest.mark.parametrize("name", FUNCTIONS)
@given(data=st.data())
def test_bulk_pushes_equal_single_ones_to_the_last_bit(name, data):
    chunks = data.draw(st.lists(stream_for(name), max_size=5))
    window, need = data.draw(window_for(name)), data.draw(st.integers(1, 15))
    bulk, single = FUNCTIONS[name](window, need), FUNCTIONS[name](window, need)
    for chunk in chunks:
        bulk.extend(chunk)
        for x in chunk:
            single.push(x)
        assert bulk.value == single.value


@pytest.mark.parametrize("name", FUNCTIONS)
@given(data=st.data())
def test_the_value_stays_within_the_reach_that_lint_assumes(name, data):
    window = data.draw(window_for(name))
    aggregate = FUNCTIONS[name](window, 1)
    low, high = FUNCTIONS[name].reach(-2.0, 2.0, window)
    for x in data.draw(stream_for(name)):
        aggregate.push(x)
        assert low - 1e-9 <= aggregate.value <= high + 1e-9


def test_rounding_does_not_build_up_in_a_windowed_mean():
    mean = FUNCTIONS["mean"](3, 3)
    for _ in range(20_000):
        for x in (1e8, 0.1, -1e8):
            mean.push(x)
    for x in (0.1, 0.1, 0.1) * 2:
        mean.push(x)
    assert mean.value == pytest.approx(0.1, abs=1e-15)
