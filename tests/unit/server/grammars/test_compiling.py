"""Schemas that are wrong, or made to exhaust a machine: refused in plain words, and the next one is compiled all the same."""

import asyncio

import pytest

from server.engines.base import EngineBusy, EngineError, EngineStopped, RequestRefused
from server.grammars import compiler as compiling
from server.grammars.compiler import GrammarCompiler
from server.grammars.source import MAX_BYTES, Form, SourceError
from server.grammars.trial import Trial
from tests.json_tokenizer import json_tokenizer
from tests.tiny_models import VOCAB_SIZE
from tests.tiny_tokenizer import tiny_tokenizer

pytestmark = pytest.mark.anyio

PLAIN = Form(answer={"enum": ["a"]}).source()


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def compiler():
    tokenizer = json_tokenizer()
    ready = GrammarCompiler(tokenizer, num_ids=VOCAB_SIZE, eos_token_ids=frozenset({tokenizer.eos_token_id}))
    yield ready
    await asyncio.to_thread(ready.close)


async def refusal(compiler, schema):
    with pytest.raises(RequestRefused) as refused:
        await compiler.compile(Form(answer=schema).source())
    return str(refused.value)


def chain(length):
    links = {str(index): {"$ref": f"#/$defs/{index + 1}"} for index in range(length)}
    return {"$ref": "#/$defs/0", "$defs": {**links, str(length): {"type": "null"}}}


HOSTILE = {
    "the stack": chain(1200),
    "time": {"properties": {f"p{i}": {"type": "integer", "multipleOf": 10007 + i} for i in range(300)}},
    "memory": {"allOf": [{"type": "string", "pattern": f"x{i}"} for i in range(100)]},
    "alternatives": {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(1000)}},
    "a product of alternatives": {
        "allOf": [
            {"anyOf": [{"properties": {f"a{i}": {"type": "string"}}}, {"properties": {f"b{i}": {}}}]}
            for i in range(10)
        ]
    },
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_schema_that_would_exhaust_something_is_refused_and_the_next_is_compiled(compiler, what):
    assert await refusal(compiler, HOSTILE[what]) == "the schema is too complex"
    assert await compiler.compile(PLAIN)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "integer"}, "maxItems": 10**9},
        {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
        {"type": "string", "maxLength": 10**9},
        {"type": "string", "pattern": "^(a+)+$"},
        {"type": "string", "pattern": "(a|b)*a(a|b){25}"},
        {"type": "string", "pattern": "((a{1,99}){1,99}){1,99}"},
    ],
)
async def test_large_counts_and_patterns_that_backtrack_elsewhere_are_no_trouble(compiler, schema):
    assert await compiler.compile(Form(answer=schema).source())


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"not": {"const": "secret"}}, "the schema uses what can't be kept to: not"),
        ({"type": "array", "uniqueItems": True}, "the schema uses what can't be kept to: uniqueItems"),
        ({"type": "string", "format": "secret"}, "the schema has a format that can't be kept to"),
        ({"type": "string", "pattern": "(?=secret)"}, "the schema has a pattern that can't be kept to"),
        ({"oneOf": [{"type": "string"}, {"const": "secret"}]}, "use anyOf"),
        ({"$ref": "https://secret.example/x.json"}, "$ref to something that is not in it"),
        ({"$ref": "file:///etc/passwd"}, "$ref to something that is not in it"),
        ({"$ref": "#/secret"}, "$ref to something that is not in it"),
        ({"$ref": "#"}, "nothing satisfies the schema"),
        ({"enum": []}, "nothing satisfies the schema"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "nothing satisfies the schema"),
        ({"type": "secret"}, "the schema is not valid, or can't be compiled"),
        ({"properties": "secret"}, "the schema is not valid, or can't be compiled"),
    ],
)
async def test_what_is_wrong_is_told_without_a_word_of_the_schema(compiler, schema, told):
    text = await refusal(compiler, schema)
    assert told in text
    assert "secret" not in text


async def test_what_was_compiled_or_refused_is_known_the_next_time(compiler):
    first = await compiler.compile(PLAIN)
    assert await compiler.compile(PLAIN) is first
    assert await refusal(compiler, chain(1200)) == "the schema is too complex"
    process = compiler._trial._process
    assert await refusal(compiler, chain(1200)) == "the schema is too complex"
    assert compiler._trial._process is process  # nothing was tried


async def test_only_the_grammars_that_were_asked_for_lately_are_kept(compiler, monkeypatch):
    monkeypatch.setattr(compiling, "_MAX_KEPT", 2)
    sources = [Form(answer={"const": index}).source() for index in range(3)]
    first = await compiler.compile(sources[0])
    second = await compiler.compile(sources[1])
    assert await compiler.compile(sources[0]) is first
    await compiler.compile(sources[2])
    assert await compiler.compile(sources[0]) is first
    assert await compiler.compile(sources[1]) is not second


async def test_too_many_schemas_at_once_are_the_servers_to_refuse(compiler, monkeypatch):
    monkeypatch.setattr(compiling, "_MAX_WAITING", 2)
    waiting = [asyncio.create_task(compiler.compile(Form(answer={"const": i}).source())) for i in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(EngineBusy):
        await compiler.compile(PLAIN)
    await asyncio.gather(*waiting)
    assert await compiler.compile(PLAIN)


async def test_who_leaves_while_a_schema_is_compiled_takes_nothing_from_who_waits_for_the_same(compiler):
    leaving, staying = (asyncio.create_task(compiler.compile(PLAIN)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying


async def test_a_schema_that_could_not_be_tried_is_tried_again(compiler, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(compiling.Trial, "error", lambda *_: 1 / 0)
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            await compiler.compile(PLAIN)
    assert await compiler.compile(PLAIN)


async def test_a_process_that_something_else_has_ended_is_begun_anew(compiler):
    assert await compiler.compile(PLAIN)
    compiler._trial._process.kill()
    compiler._trial._process.wait()
    assert await compiler.compile(Form(answer={"enum": ["b"]}).source())


def test_a_process_that_does_not_start_says_nothing_about_the_schema():
    trial = Trial({"tokenizer": "{}", "num_ids": 1, "eos_token_ids": [0]})
    with pytest.raises(OSError, match="does not start"):
        trial.error(PLAIN)


def test_a_trial_that_was_ended_before_it_began_never_begins():
    spec = compiling.GrammarCompiler(
        json_tokenizer(), num_ids=VOCAB_SIZE, eos_token_ids=frozenset({2})
    )._tokenizer_spec()
    trial = Trial(spec)
    trial.end()
    with pytest.raises(OSError, match="does not start"):
        trial.error(PLAIN)
    assert trial._process is None


async def test_closing_ends_a_trial_that_runs():
    tokenizer = json_tokenizer()
    compiler = GrammarCompiler(tokenizer, num_ids=VOCAB_SIZE, eos_token_ids=frozenset({2}))
    assert await compiler.compile(PLAIN)
    running = asyncio.create_task(compiler.compile(Form(answer=HOSTILE["time"]).source()))
    waiting = asyncio.create_task(compiler.compile(Form(answer={"const": 1}).source()))
    await asyncio.sleep(0.01)
    await asyncio.to_thread(compiler.close)
    for ended in (running, waiting):
        with pytest.raises(EngineStopped):
            await ended
    assert compiler._trial._process is None


async def test_a_tokenizer_or_model_that_can_not_be_constrained_is_told_of():
    for tokenizer, ends in ((tiny_tokenizer(), {2}), (json_tokenizer(), set())):
        compiler = GrammarCompiler(tokenizer, num_ids=VOCAB_SIZE, eos_token_ids=frozenset(ends))
        assert await refusal(compiler, {}) == "this model's tokenizer can't be constrained"
        compiler.close()


def test_a_schema_that_is_too_large_or_deep_is_not_even_looked_at():
    with pytest.raises(SourceError, match="too large"):
        Form(answer={"enum": ["x" * MAX_BYTES]}).source()
    deep = {}
    for _ in range(100_000):
        deep = {"items": deep}
    with pytest.raises(SourceError, match="nested too deeply"):
        Form(answer=deep).source()
