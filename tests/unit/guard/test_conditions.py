"""Three-valued logic, and the sharing of equal aggregates."""

from itertools import product

import pytest

from guard.conditions import Aggregates, compile_condition, conjunction, disjunction, negation
from guard.parser import parse
from guard.types import Phase

RANK = {False: 0, None: 1, True: 2}  # Kleene: `and` is the minimum, `or` the maximum, `not` the mirror image
VALUES = {rank: value for value, rank in RANK.items()}


@pytest.mark.parametrize("values", [*product(RANK, repeat=2), *product(RANK, repeat=3)])
def test_and_or_follow_kleene(values):
    operands = [lambda value=value: value for value in values]
    assert conjunction(operands)() is VALUES[min(RANK[v] for v in values)]
    assert disjunction(operands)() is VALUES[max(RANK[v] for v in values)]


@pytest.mark.parametrize("value", RANK)
def test_not_follows_kleene(value):
    assert negation(lambda: value)() is VALUES[2 - RANK[value]]


def verdicts(when, *, prompt=(), response=()):
    """What a condition says after the prompt, and after each response token, of one monitor called `a`."""
    aggregates = Aggregates()
    condition = compile_condition(parse(when), aggregates)
    for feed in aggregates.feeds(Phase.PROMPT).values():
        for extend in feed.extends:
            extend(list(prompt))
    told = [condition()]
    for score in response:
        for feed in aggregates.feeds(Phase.RESPONSE).values():
            feed.push()(score)
        told.append(condition())
    return told


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("mean(response.a, window=3) > 0.5", [None, None, None, True, True]),
        ("mean(response.a, window=3, min=1) > 0.5", [None, True, True, True, True]),
        ("mean(response.a) > 0.5", [None, True, True, True, True]),
        ("min(response.a, window=3) > 0.5", [None, None, None, True, True]),
        ("frac(response.a > 0.5, window=3) >= 1", [None, None, None, True, True]),
        ("max(response.a, window=3) > 0.5", [None, True, True, True, True]),
        ("count(response.a > 0.5, window=3) >= 2", [None, False, True, True, True]),
        ("run(response.a > 0.5, min=4) >= 2", [None, None, None, None, True]),
        ("last(response.a) > 0.5", [None, True, True, True, True]),
        ("ema(response.a, window=3) > 0.8", [None, False, False, False, True]),
        ("not mean(response.a, window=3) > 0.5", [None, None, None, False, False]),
        ("max(response.a) > 0.5 or mean(response.a, window=3) > 0.5", [None, True, True, True, True]),
        ("0.5 < last(response.a) < 0.8", [None, False, False, False, False]),
        ("0.5 < last(response.a) <= 0.9", [None, True, True, True, True]),
        ("1 < 2 < count(response.a > 0.5)", [None, False, False, True, True]),
        ("max(response.a) == mean(response.a, window=4, min=1)", [None, True, True, True, True]),
    ],
)
def test_known_from_which_token_on(when, expected):
    assert verdicts(when, response=[0.9] * 4) == expected


@pytest.mark.parametrize(
    ("symbol", "expected"), [(">", 1), (">=", 2), ("<", 1), ("<=", 2), ("==", 1), ("!=", 2)]
)
def test_tests_compare_the_right_way_round(symbol, expected):
    assert verdicts(f"count(prompt.a {symbol} 0.5) == {expected}", prompt=[0.4, 0.5, 0.6]) == [True]
    assert verdicts("count(0.4 <= prompt.a <= 0.5) == 2", prompt=[0.4, 0.5, 0.6]) == [True]


def test_equal_calls_share_one_aggregate_and_others_do_not():
    aggregates = Aggregates()
    for when in (
        "max(response.a) > 0.1",
        "max( response.a ) > 0.2",
        "max(response.a, window=2) > 0.1",
        "max(prompt.a) > 0.1",
    ):
        compile_condition(parse(when), aggregates)
    assert len(aggregates.feeds(Phase.RESPONSE)["a"].pushes) == 2
    assert len(aggregates.feeds(Phase.PROMPT)["a"].pushes) == 1
