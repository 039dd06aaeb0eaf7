"""What a grammar allows, against a plain definition of what it means; and what comes of always drawing what is allowed."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engines.base import RequestRefused
from server.grammars import child
from server.grammars.matching import CompiledGrammar
from server.grammars.source import Form
from server.tool_calls import ToolCall, ToolCallReader
from tests.json_tokenizer import json_tokenizer
from tests.tiny_models import VOCAB_SIZE

TOKENIZER = json_tokenizer()
EOS = TOKENIZER.eos_token_id
SPECIAL = set(TOKENIZER.all_special_ids)
TEXTS = [TOKENIZER.decode([index]) if index not in SPECIAL else "" for index in range(len(TOKENIZER))]
VOCABULARY = child.tokenizer(
    {
        "tokenizer": TOKENIZER.backend_tokenizer.to_str(),
        "num_ids": VOCAB_SIZE,
        "eos_token_ids": [EOS],
    }
)


@pytest.fixture(scope="module")
def threads():
    with ThreadPoolExecutor(1) as executor:
        yield executor


def begin(form, threads):
    matcher = child.compiled(VOCABULARY, form.source())
    assert not matcher.is_error(), matcher.get_error()
    return CompiledGrammar(matcher, VOCAB_SIZE, threads).begin(lambda: None)


def allowed(matching):
    return set(matching.allowed().nonzero()[0].tolist())


def follow(form, ids, threads):
    """What is allowed after some tokens."""
    matching = begin(form, threads)
    for token_id in ids:
        assert token_id in allowed(matching)
        matching.take(token_id)
    return allowed(matching)


def walk(form, threads, seed=0, most=200):
    """A reply drawn at random from what is allowed; None if it has not ended by itself."""
    matching, chance, text = begin(form, threads), random.Random(seed), ""  # noqa: S311
    for _ in range(most):
        token_id = chance.choice(sorted(allowed(matching)))
        if token_id == EOS:
            return text
        text += TEXTS[token_id]
        matching.take(token_id)
    return None


FINITE = [
    ["ab", "abc", "b"],
    [1, 12, 121, -1],
    [True, None, "true"],
    [{"a": 1}, {"a": [1, {}]}, []],
]


@pytest.mark.parametrize("values", FINITE)
def test_masks_lead_to_every_way_to_write_what_is_accepted_and_to_nothing_else(values, threads):
    """Where a schema has few values, all that may be written is known. (Of the ways to cut forced text into tokens only the
    tokenizer's own is allowed, so a mask may be smaller than the plain definition; never empty, and no text is lost.)"""
    words = {
        json.dumps(value, separators=separators)
        for value in values
        for separators in ((",", ":"), (", ", ": "), (",", ": "), (", ", ":"))
    }
    form, written, seen = Form(answer={"enum": values}), set(), set()
    pending = [((), "")]
    while pending:
        ids, text = pending.pop()
        rest = {word[len(text) :] for word in words if word.startswith(text)}
        plain = {i for i, piece in enumerate(TEXTS) if piece and any(r.startswith(piece) for r in rest)}
        found = follow(form, ids, threads)
        assert (EOS in found) == (text in words)
        assert found - {EOS} <= plain
        if text in words:
            written.add(text)
        for token_id in found - {EOS}:
            longer = text + TEXTS[token_id]
            if longer not in seen:
                seen.add(longer)
                pending.append(((*ids, token_id), longer))
    assert written == words


NAMES = st.sampled_from(["a", "ab", "name", "x_1"])
SCALARS = st.one_of(
    st.builds(
        lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
        st.integers(-50, 50),
        st.integers(0, 300),
    ),
    st.builds(lambda size: {"type": "string", "maxLength": size}, st.integers(0, 5)),
    st.builds(lambda size: {"type": "string", "pattern": f"^[a-c]{{1,{size}}}$"}, st.integers(1, 4)),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.sampled_from(["a", 1, None, "b c"]), min_size=1, unique=True),
    ),
)


def _object(properties, data):
    required = sorted(properties)[: data % (len(properties) + 1)]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.builds(_object, st.dictionaries(NAMES, inner, max_size=3), st.integers(0, 10)),
        st.builds(
            lambda items, size: {"type": "array", "items": items, "maxItems": size}, inner, st.integers(0, 3)
        ),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(SCHEMAS, st.integers(0, 2**32))
def test_what_is_drawn_from_masks_alone_always_parses_and_validates(schema, seed):
    with ThreadPoolExecutor(1) as executor:
        text = walk(Form(answer=schema), executor, seed, most=1000)
    assert text is not None, "these schemas have no endless values"
    jsonschema.validate(json.loads(text), schema)


WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 4}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = {"weather": WEATHER, "now": {"type": "object", "properties": {}, "additionalProperties": False}}


def read(text):
    reader = ToolCallReader(TOOLS)
    return [*reader.feed(text), *reader.end()]


@pytest.mark.parametrize("at_most_one", [False, True])
def test_a_forced_reply_is_nothing_but_calls_that_can_be_read(at_most_one, threads):
    form = Form(tools=TOOLS, must_call=True, at_most_one=at_most_one)
    counts = set()
    for seed in range(20):
        pieces = read(walk(form, threads, seed, most=2000))
        assert all(isinstance(piece, ToolCall) for piece in pieces)
        for call in pieces:
            jsonschema.validate(json.loads(call.arguments), TOOLS[call.name])
        counts.add(len(pieces))
    assert min(counts) == 1
    assert (max(counts) > 1) is not at_most_one


def ids(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


CALL = '<tool_call>{"name": "weather", "arguments": {"city": "bern"}}</tool_call>'


def test_free_text_is_free_until_a_call_begins_which_must_then_be_one(threads):
    form = Form(tools=TOOLS)
    assert EOS in follow(form, (), threads)
    everything = {index for index in range(len(TOKENIZER)) if index not in SPECIAL} | {EOS}
    assert follow(form, ids("a <tool> is {"), threads) == everything
    assert EOS not in follow(form, ids("so <tool_call>"), threads)
    assert follow(form, ids("so <tool_call>" + '{"name": "'), threads) == set(ids("w") + ids("n"))
    after = follow(form, ids("so " + CALL), threads)
    assert after == {EOS, *ids("<"), *ids("\n")}
    assert follow(Form(tools=TOOLS, at_most_one=True), ids("so " + CALL), threads) == {EOS}


def test_an_answer_or_calls_are_the_models_to_choose(threads):
    form = Form(answer={"type": "object"}, tools=TOOLS)
    assert follow(form, (), threads) == {*ids("<"), *ids("{"), TEXTS.index('{"')}
    assert EOS in follow(form, ids(CALL), threads)
    assert follow(form, ids("{}"), threads) == {EOS}


def test_a_client_can_not_change_how_its_schema_is_kept(threads):
    """llguidance reads options in a schema: one would switch off what it can't keep."""
    lenient = {"x-guidance": {"lenient": True, "whitespace_flexible": True}, "type": "object"}
    assert not follow(Form(answer=lenient), ids("{"), threads) & {*ids(" "), *ids("\n")}
    source = Form(answer={**lenient, "not": {}}).source()
    assert "not" in child.tried(VOCABULARY, source)


def test_responses_that_share_a_grammar_do_not_share_what_they_said(threads):
    matcher = child.compiled(VOCABULARY, Form(answer={"enum": ["ab", "ba"]}).source())
    grammar = CompiledGrammar(matcher, VOCAB_SIZE, threads)
    one, other = grammar.begin(lambda: None), grammar.begin(lambda: None)
    one.take(ids('"')[0])
    one.take(ids("b")[0])
    assert allowed(one) == set(ids("a"))
    assert allowed(other) == set(ids('"'))
    assert allowed(grammar.begin(lambda: None)) == set(ids('"'))


def test_a_grammar_that_gives_out_says_so_and_not_what_it_says(threads):
    """It has more alternatives after the brace than are followed, which nothing forces."""
    wide = {"type": "object", "properties": {f"secret{i}": {"type": "null"} for i in range(1000)}}
    matching = begin(Form(answer={"anyOf": [{"type": "null"}, wide]}), threads)
    matching.take(ids("{")[0])
    with pytest.raises(RequestRefused, match="too complex") as told:
        matching.allowed()
    assert "secret" not in str(told.value)
