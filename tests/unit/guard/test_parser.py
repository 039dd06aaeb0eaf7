"""What the condition language accepts, and where it says that something is wrong."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guard.errors import ExpressionError
from guard.expressions import quantities
from guard.parser import MAX_CHARACTERS, parse


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("max(prompt.harm) > 0.9", ["max(prompt.harm)"]),
        ("count(response.d > .7, window=16) >= 4", ["count(response.d > 0.7, window=16)"]),
        ("count(0.7 < response.d, window=16) >= 4", ["count(response.d > 0.7, window=16)"]),
        ("0.1 < mean(prompt.x, window=3, min=2) <= 0.5", ["mean(prompt.x, window=3, min=2)"]),
        ("frac(0.2 <= response.x < 0.7) > 0.5", ["frac(0.2 <= response.x < 0.7)"]),
        (
            "not (last(response.a) > 1 or ema(response.b, window=4) > 0.5)",
            ["last(response.a)", "ema(response.b, window=4)"],
        ),
        ("max(prompt.a)\n  > 0.5 and\tmax(prompt.a) < 0.9", ["max(prompt.a)"]),
        ("max(response.a) > max(prompt.a)", ["max(response.a)", "max(prompt.a)"]),
        ("max(prompt.a) > -1e-3", ["max(prompt.a)"]),
        ("mean(prompt.x, window=3, min=3) > 1", ["mean(prompt.x, window=3)"]),
        ("count(conversation.x > .5) > 3", ["count(conversation.x > 0.5)"]),
        ("turn() > 3 and 1 < tokens() < 9", ["turn()", "tokens()"]),
        ("tokens() > max(prompt.x)", ["tokens()", "max(prompt.x)"]),
        (
            "exceeds(prompt.x, fpr=0.001) or not exceeds(response.x, fpr=1e-2)",
            ["max(prompt.x)", "max(response.x)"],
        ),
    ],
)
def test_accepts_and_spells_canonically(text, texts):
    assert [quantity.text for quantity in quantities(parse(text))] == texts


@pytest.mark.parametrize(
    ("text", "at", "code", "told"),
    [
        ("maxx(prompt.a) > 1", 0, "unknown-function", "did you mean 'max'"),
        ("max(promt.a) > 1", 4, "unknown-scope", "did you mean 'prompt'"),
        ("max(prompt.harn) > 1", 11, "unknown-monitor", "did you mean 'harm'"),
        ("max(prompt.harm) > 1 or maxx(prompt.harm) > 1", 24, "unknown-function", "max"),
        ("prompt.harm > 1", 0, "type", "max(prompt.harm)"),
        ("harm > 1", 0, "unknown-name", "prompt.harm"),
        ("max(prompt.harm)", 0, "type", "compare it"),
        ("0.9", 0, "type", "compare it"),
        ("1 < 2", 0, "constant", ""),
        ("(max(prompt.harm) > 1) > 2", 1, "type", "number is needed"),
        ("max(prompt.harm > 1) > 1", 4, "type", "count()"),
        ("count(response.harm) > 1", 6, "type", "count(response.x > 0.7)"),
        ("max(prompt.harm, window=0) > 1", 24, "window", "1 to 65,536"),
        ("max(prompt.harm, window=2.5) > 1", 24, "window", "whole number"),
        ("max(prompt.harm, window=True) > 1", 24, "window", "whole number"),
        ("max(prompt.harm, window=65537) > 1", 24, "window", "65,536"),
        ("max(prompt.harm, windw=3) > 1", 17, "unknown-option", "did you mean 'window'"),
        ("last(prompt.harm, window=3) > 1", 18, "unknown-option", "min"),
        ("ema(prompt.harm) > 1", 0, "window", "window=16"),
        ("max(prompt.harm, 3) > 1", 0, "type", "window= by its name"),
        ("max(prompt.harm) > 1 + 2", 19, "unsupported", "arithmetic"),
        ("max(prompt.harm) > 'a'", 19, "unsupported", "strings"),
        ("max(prompt.harm) ≥ 1", 17, "unsupported", ">="),
        ("max(prompt.harm) > 1e999", 19, "type", "too large"),
        ("max(prompt.harm) > 1j", 19, "unsupported", ""),
        ("max(prompt.harm) in (1, 2)", 20, "unsupported", ""),
        ("max(prompt.harm) > 1 if 1 else 2", 0, "unsupported", ""),
        ("exceeds(prompt.harm)", 0, "budget", "fpr=0.001"),
        ("exceeds(fpr=0.1)", 0, "type", "one series"),
        ("exceeds(prompt.harm, 0.001)", 0, "type", "one series"),
        ("exceeds(prompt.harm, fpr=0)", 25, "budget", "between 0 and 1"),
        ("exceeds(prompt.harm, fpr=1)", 25, "budget", "between 0 and 1"),
        ("exceeds(prompt.harm, fpr=-1)", 25, "budget", "between 0 and 1"),
        ("exceeds(prompt.harm, fpr=max(prompt.harm))", 25, "type", "number"),
        ("exceeds(prompt.harm, fpr=0.1, window=3)", 30, "unknown-option", "known: fpr"),
        ("exceeds(prompt.harm, **x)", 21, "unsupported", ""),
        ("exceeds(prompt.harm > 1, fpr=0.1)", 8, "type", "series"),
        ("exceeds(prompt.harn, fpr=0.1)", 15, "unknown-monitor", "did you mean 'harm'"),
        ("exceeds(prompt.harm, fpr=0.1) > 0.5", 0, "type", "by itself"),
        ("exceds(prompt.harm, fpr=0.1)", 0, "unknown-function", "did you mean 'exceeds'"),
        ("max(conversaton.harm) > 1", 4, "unknown-scope", "did you mean 'conversation'"),
        ("tokens(prompt.harm) > 5", 0, "type", "write tokens()"),
        ("turn", 0, "unknown-name", ""),
        ("turns() > 1", 0, "unknown-function", "did you mean 'turn'"),
        ("turn()", 0, "type", "compare it"),
        ("max(turn()) > 1", 4, "type", "series"),
        ("max(prompt.harm) > > 1", 19, "syntax", ""),
        ("(max(prompt.harm) > 1", 0, "syntax", "never closed"),
        ("", 0, "syntax", "empty"),
        ("  \n ", 0, "syntax", "empty"),
        ("True", 0, "type", "mode: off"),
        ("max(prompt.harm) > 1\0", 20, "unsupported", ""),
        ("not " * 40 + "max(prompt.harm) > 1", 132, "too-deep", "32"),
        ("x" * (MAX_CHARACTERS + 1), 0, "too-long", "2,000"),
    ],
)
def test_says_what_is_wrong_and_where(text, at, code, told):
    with pytest.raises(ExpressionError) as caught:
        parse(text, monitors={"harm", "deception"})
    (flaw,) = caught.value.flaws
    assert (flaw.at, flaw.code) == (at, code)
    assert told in flaw.message + flaw.hint


def test_finds_every_flaw_of_and_and_or():
    with pytest.raises(ExpressionError) as caught:
        parse("maxx(prompt.a) > 1 and (min(promt.a) > 1 or 3) and not b")
    assert [flaw.at for flaw in caught.value.flaws] == [0, 28, 44, 55]


words = st.sampled_from(
    [
        "max",
        "min",
        "count",
        "run",
        "ema",
        "(",
        ")",
        "(",
        ")",
        ",",
        ".",
        ">",
        "<",
        ">=",
        "==",
        "0.5",
        "1",
        "window=",
        "min=",
        "prompt.a",
        "response.b",
        "conversation.a",
        "exceeds",
        "exceeds(prompt.a,",
        "fpr=",
        "0.01",
        "tokens()",
        "turn()",
        "and",
        "or",
        "not",
        "if",
        "else",
        "lambda",
        "x",
        ":",
        "[",
        "]",
        "**",
        "-",
    ]
)


@given(
    st.one_of(st.text(max_size=60), st.lists(words, max_size=25).map(" ".join), st.lists(words).map("".join))
)
@example("(" * 1_000)
@example("-" * 1_999 + "1")
@example("not " * 490)
@example("a." * 900 + "b")
@example("max(" * 400)
@example("exceeds(" * 200)
@example("turn()" * 300)
@example("exceeds(prompt.a, fpr=0.1, fpr=0.2)")
@example("not exceeds(prompt.a, fpr=" + "9" * 1_900 + ")")
def test_any_text_is_understood_or_refused_cleanly(text):
    try:
        condition = parse(text)
    except ExpressionError as error:
        assert error.flaws  # noqa: PT017
        assert all(0 <= flaw.at <= max(len(text), 0) for flaw in error.flaws)  # noqa: PT017
    else:
        assert quantities(condition)
