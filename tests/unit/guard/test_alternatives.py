"""Contradictions and implications, against plain evaluation on every combination of values that could matter."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.alternatives import alternatives, contradiction, implies
from guard.conditions import Aggregates, compile_condition
from guard.parser import parse

comparison = st.builds(
    "{} {} {}".format,
    st.sampled_from(["last(response.a)", "last(response.b)"]),
    st.sampled_from([">", ">=", "<", "<=", "==", "!="]),
    st.sampled_from(["0", "1", "2"]),
)
turned = st.builds("{} < last(response.a) <= {}".format, st.sampled_from("01"), st.sampled_from("12"))
conditions = st.recursive(
    st.one_of(comparison, turned, st.just("last(response.a) > last(response.b)")),
    lambda inner: st.one_of(
        st.builds("not ({})".format, inner),
        st.builds("({}) and ({})".format, inner, inner),
        st.builds("({}) or ({})".format, inner, inner),
    ),
    max_leaves=6,
)
HALVES = [-0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5]


def truths(text):
    """What the condition says for each pair of scores."""
    told = []
    for a, b in product(HALVES, repeat=2):
        aggregates = Aggregates()
        condition = compile_condition(parse(text), aggregates)
        for call, aggregate in aggregates._by_call.items():
            aggregate.push(a if call.series.monitor == "a" else b)
        told.append(condition())
    return told


@given(conditions)
def test_what_contradicts_itself_is_never_true(text):
    every = alternatives(parse(text))
    impossible = all(contradiction(alternative) for alternative in every)
    if impossible:
        assert True not in truths(text)
    elif "!=" not in text and "not" not in text and "last(response.a) > last(response.b)" not in text:
        assert True in truths(text)  # and nothing that can be true is called impossible


@given(conditions, conditions)
def test_what_is_implied_is_true_wherever_the_premise_is(one, other):
    if implies(alternatives(parse(one)), alternatives(parse(other))):
        assert all(b is True for a, b in zip(truths(one), truths(other), strict=True) if a is True)


@pytest.mark.parametrize(
    ("premise", "conclusion", "expected"),
    [
        ("max(response.a) > 0.9", "max(response.a) > 0.6", True),
        ("max(response.a) > 0.6", "max(response.a) > 0.9", False),
        ("max(response.a) >= 0.9", "max(response.a) > 0.9", False),
        ("0.9 < max(response.a)", "max(response.a) >= 0.9", True),
        ("max(response.a) > 0.9 and max(response.b) > 0.1", "max(response.a) > 0.6", True),
        ("max(response.a) > 0.9 or max(response.b) > 0.1", "max(response.a) > 0.6", False),
        ("max(response.a) > 0.9", "max(response.a) > 0.6 or max(response.b) > 0.1", True),
        ("not max(response.a) <= 0.9", "max(response.a) > 0.6", True),
        ("max(response.a) == 0.9", "max(response.a) > 0.6", True),
        ("max(response.a) > 0.9", "max(prompt.a) > 0.6", False),
        ("max(response.a, window=4) > 0.9", "max(response.a) > 0.6", False),  # true, and not worth a rule
        ("count(response.a > 0.9) >= 4", "count(response.a > 0.7) >= 3", True),
        ("count(response.a > 0.7) >= 4", "count(response.a > 0.9) >= 3", False),
        ("count(response.a > 0.9) <= 4", "count(response.a > 0.7) <= 5", False),
        ("run(response.a > 0.7, window=9) > 3", "run(response.a >= 0.7, window=9) > 3", True),
        ("run(response.a >= 0.7, window=9) > 3", "run(response.a > 0.7, window=9) > 3", False),
        ("count(response.a > 0.9, window=4) >= 4", "count(response.a > 0.7, window=8) >= 4", False),
        ("exceeds(response.a, fpr=0.1)", "exceeds(response.a, fpr=0.1)", True),
        ("exceeds(response.a, fpr=0.1)", "exceeds(response.a, fpr=0.2)", False),  # thresholds unknown
        ("tokens() > 9", "tokens() > 5", True),
    ],
)
def test_stricter_conditions_imply_wider_ones(premise, conclusion, expected):
    assert implies(alternatives(parse(premise)), alternatives(parse(conclusion))) is expected


def test_a_condition_with_too_many_alternatives_is_left_alone():
    some = " or ".join(f"max(response.a) == {i}" for i in range(9))
    assert alternatives(parse(f"({some}) and ({some})")) is None
