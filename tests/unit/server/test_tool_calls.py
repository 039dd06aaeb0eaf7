"""Calls are read out of a reply the same however it is cut into pieces, and what is no call stays text."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.tool_calls import ToolCall, ToolCallReader, reads_calls_of

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
OTHER = '<tool_call>{"name": "time"}</tool_call>'


def read(*parts):
    """Text and calls: the text in one, calls as (name, arguments)."""
    reader = ToolCallReader(["weather", "time"])
    pieces = [piece for part in parts for piece in reader.feed(part)] + reader.end()
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    return text, [(p.name, json.loads(p.arguments)) for p in pieces if isinstance(p, ToolCall)]


ZURICH = ("weather", {"city": "Zürich"})


@pytest.mark.parametrize(
    ("reply", "text", "calls"),
    [
        ("plain text", "plain text", []),
        (CALL, "", [ZURICH]),
        (f"Let me see.\n{CALL}", "Let me see.\n", [ZURICH]),
        (f"{CALL}\n{OTHER}\n", "", [ZURICH, ("time", {})]),
        (CALL.removesuffix("</tool_call>"), "", [ZURICH]),
        (f"{CALL}\nDone.", "\nDone.", [ZURICH]),
        ("a < b and <tool", "a < b and <tool", []),
        ("<tool_call>no json</tool_call>!", "<tool_call>no json</tool_call>!", []),
        ('<tool_call>{"name": "rm"}</tool_call>', '<tool_call>{"name": "rm"}</tool_call>', []),
        (
            '<tool_call>{"name": "time", "arguments": "x"}',
            '<tool_call>{"name": "time", "arguments": "x"}',
            [],
        ),
        ('<tool_call>{"name": ["time"]}', '<tool_call>{"name": ["time"]}', []),
        (
            '<tool_call>{"name": "time", "arguments": {"x": NaN}}',
            '<tool_call>{"name": "time", "arguments": {"x": NaN}}',
            [],
        ),
        (
            '<tool_call>{"name": "time", "arguments": {"x": "\\ud800"}}</tool_call>',
            "",
            [("time", {"x": "\ud800"})],
        ),
        (f"a \n{OTHER} b  \n", "a \n b", [("time", {})]),
        ("<tool_call>" + "[" * 100_000, "<tool_call>" + "[" * 100_000, []),
    ],
)
def test_a_reply_is_text_and_calls(reply, text, calls):
    assert read(reply) == (text, calls)


@given(
    pieces=st.lists(
        st.sampled_from([CALL, OTHER, "text ", "\n", "<tool_", "<", "</tool_call>", "<tool_call>{"])
    ),
    cuts=st.lists(st.integers(0, 400)),
)
def test_how_it_is_cut_makes_no_difference(pieces, cuts):
    reply = "".join(pieces)
    places = [0, *sorted(min(cut, len(reply)) for cut in cuts), len(reply)]
    parts = [reply[start:end] for start, end in pairwise(places)]
    assert read(*parts) == read(reply)


@given(st.text(alphabet="<tool_cal>/x \n", max_size=60))
def test_without_a_call_not_a_character_is_lost(reply):
    assert read(*reply)[0] == reply


def test_text_leaves_as_soon_as_it_can_be_no_call():
    reader = ToolCallReader(["time"])
    assert reader.feed("Hello <b") == ["Hello <b"]
    assert reader.feed("old <tool") == ["old "]
    assert reader.feed("s>") == ["<tools>"]


def test_a_form_that_is_not_read_is_known_by_the_template():
    hermes = "{% if tools %}<tools>…</tools> <tool_call>…</tool_call>{% endif %}"
    assert reads_calls_of(hermes, ["<eos>"])
    assert not reads_calls_of(hermes, ["<tool_call>"])
    assert not reads_calls_of("{% if tools %}[TOOL_CALLS]{% endif %}", [])
    assert not reads_calls_of("{{ messages }}", [])
