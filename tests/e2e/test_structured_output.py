"""JSON by schema and forced calls of tools, through the stock client, from a random model: it is the grammar that gives the form."""

import json
from typing import Annotated, Literal

import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from server.engines.scripted import Script
from server.engines.transformers.engine import EngineSettings, TransformersEngine
from server.engines.transformers.model import prepare
from server.tokenizer import ModelTokenizer
from tests.e2e.conftest import ALLOW_ONLY, scores
from tests.integration.conftest import monitors_for
from tests.json_tokenizer import json_tokenizer
from tests.tiny_models import TINY

ALLOW = ALLOW_ONLY.replace("harm", "cosine")
BLOCK_FIFTH = """
apiVersion: interlock/v1
kind: Policy
metadata: {name: p, version: "1"}
rules:
  - {id: fifth, when: "count(response.cosine > -2, window=5) >= 5", then: {block: {message: Withheld.}}}
tests:
  - {name: t, given: {response: {cosine: "0x5"}}, expect: {action: block}}
"""


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=6)]
    age: Annotated[int, Field(ge=0, le=120)]
    tags: Annotated[list[Literal["a", "b"]], Field(max_length=3)]


class Weather(BaseModel):
    city: Annotated[str, Field(max_length=5)]


class Time(BaseModel):
    zone: Literal["utc", "cet"]


TOOLS = [
    openai.pydantic_function_tool(Weather, name="weather"),
    openai.pydantic_function_tool(Time, name="time"),
]
MESSAGES = [{"role": "user", "content": "hello"}]
WIDE = {"type": "object", "properties": {f"secret{i}": {"type": "null"} for i in range(1000)}}


def by_schema(schema):
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.fixture(scope="module")
def tiny():
    return prepare(TINY["llama"](max_position_embeddings=1024), json_tokenizer(), model_id="tiny")


@pytest.fixture
def start(serve, tiny):
    def started(policy=ALLOW):
        engine = TransformersEngine(tiny, monitors_for(tiny), EngineSettings(max_batch=4))
        return serve(
            policy, engine=engine, tokenizer=ModelTokenizer(tiny.tokenizer), vectors=("push", "erase")
        )

    return started


def test_the_clients_parse_returns_what_was_asked_for(start):
    live = start()
    reply = live.client.chat.completions.parse(
        model=live.model, messages=MESSAGES, response_format=Person, max_tokens=400, n=2, seed=1
    )
    one, other = reply.choices
    assert isinstance(one.message.parsed, Person)
    assert isinstance(other.message.parsed, Person)
    assert one.message.content != other.message.content
    assert one.finish_reason == "stop"


def test_a_streamed_reply_is_the_same_reply(start):
    live = start()
    asked = {"model": live.model, "messages": MESSAGES, "max_tokens": 400, "seed": 1}
    with live.client.chat.completions.stream(response_format=Person, **asked) as stream:
        streamed = stream.get_final_completion().choices[0].message
    whole = live.client.chat.completions.parse(response_format=Person, **asked).choices[0].message
    assert streamed.parsed == whole.parsed
    assert streamed.content == whole.content


def test_any_object_of_json_is_one_line_of_it(start):
    live = start()
    bias = {str(live.service.tokenizer.encode("}")[0]): 8}  # a random model would go on for ever
    for seed in range(3):
        reply = live.chat(response_format={"type": "json_object"}, max_tokens=800, seed=seed, logit_bias=bias)
        assert isinstance(json.loads(reply.choices[0].message.content), dict)
        assert "\n" not in reply.choices[0].message.content


def test_responses_have_it_as_their_text_format(start):
    live = start()
    asked = {"model": live.model, "input": "hello", "max_output_tokens": 400, "temperature": 0}
    reply = live.client.responses.parse(text_format=Person, **asked)
    assert isinstance(reply.output_parsed, Person)
    assert reply.text.format.type == "json_schema"
    assert reply.text.format.schema_["required"] == ["name", "age", "tags"]
    with live.client.responses.stream(text_format=Person, **asked) as stream:
        assert stream.get_final_response().output_parsed == reply.output_parsed


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_that_must_be_called_is_called(start, stream):
    live = start()
    asked = {"model": live.model, "messages": MESSAGES, "tools": TOOLS, "max_tokens": 800, "seed": 3}
    named = {"type": "function", "function": {"name": "time"}}

    def replied(**options):
        if not stream:
            return live.client.chat.completions.parse(**asked, **options).choices[0]
        with live.client.chat.completions.stream(**asked, **options) as chunks:
            return chunks.get_final_completion().choices[0]

    choice = replied(tool_choice="required", parallel_tool_calls=False)
    (call,) = choice.message.tool_calls
    assert isinstance(call.function.parsed_arguments, Weather | Time)
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content
    (call,) = replied(tool_choice=named).message.tool_calls
    assert call.function.name == "time"
    assert isinstance(call.function.parsed_arguments, Time)


def test_strict_tools_leave_the_model_free_to_answer_in_text(start):
    live = start()
    message = live.chat(tools=TOOLS, max_tokens=20, seed=1).choices[0].message
    assert message.content
    assert message.tool_calls is None


def test_a_schema_and_tools_together_give_one_or_the_other(start):
    live = start()
    seen = set()
    for seed in range(12):
        message = (
            live.client.chat.completions.parse(
                model=live.model,
                messages=MESSAGES,
                tools=TOOLS,
                parallel_tool_calls=False,
                response_format=Person,
                max_tokens=800,
                seed=seed,
            )
            .choices[0]
            .message
        )
        seen.add("calls" if message.tool_calls else "answer")
        assert bool(message.tool_calls) is not bool(message.content)
        assert message.tool_calls or isinstance(message.parsed, Person)
    assert seen == {"calls", "answer"}


def test_a_reply_that_is_cut_says_so(start):
    live = start()
    asked = {"model": live.model, "messages": MESSAGES, "max_tokens": 5}
    with pytest.raises(openai.LengthFinishReasonError):
        live.client.chat.completions.parse(response_format=Person, **asked)
    named = {"type": "function", "function": {"name": "time"}}
    choice = live.client.chat.completions.create(tools=TOOLS, tool_choice=named, **asked).choices[0]
    assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)


@pytest.mark.parametrize("stream", [False, True])
def test_the_guard_blocks_it_as_it_blocks_any_other(start, stream):
    """Four of its tokens may have left when the fifth is blocked, and none that was not scored."""
    free = start().chat(response_format=by_schema(Person.model_json_schema()), temperature=0, max_tokens=400)
    live = start(BLOCK_FIFTH)
    asked = {"response_format": by_schema(Person.model_json_schema()), "temperature": 0, "max_tokens": 400}
    if stream:
        chunks = list(live.chat(stream=True, **asked))
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        ids = live.service.tokenizer.encode(free.choices[0].message.content, add_special_tokens=False)
        assert said
        assert live.service.tokenizer.decode(ids[:4]).startswith(said)
        assert chunks[-1].choices[0].finish_reason == "content_filter"
    else:
        choice = live.chat(**asked).choices[0]
        assert (choice.finish_reason, choice.message.content) == ("content_filter", None)
        assert choice.message.refusal == "Withheld."
    assert live.metric("interlock_leaks_prevented_total") == 0
    live.wait_until_free()


def chain(length):
    links = {str(index): {"$ref": f"#/$defs/{index + 1}"} for index in range(length)}
    return {"$ref": "#/$defs/0", "$defs": {**links, str(length): {"type": "null"}}}


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        (chain(1200), "too complex"),
        ({"properties": {f"p{i}": {"multipleOf": 10007 + i} for i in range(300)}}, "too complex"),
        ({"enum": ["secret" * 20_000]}, "too large"),
        ({"$ref": "file:///secret"}, "$ref"),
        ({"not": {"const": "secret"}}, "can't be kept to: not"),
        ({"type": "string", "pattern": "(?=secret)"}, "pattern"),
    ],
)
def test_a_hostile_schema_is_a_400_and_what_runs_goes_on(start, schema, told):
    live = start()
    running = live.chat(stream=True, max_tokens=100, temperature=0, extra_body={"ignore_eos": True})
    first = next(running)
    body = {"model": live.model, "messages": MESSAGES, "response_format": by_schema(schema)}
    reply = live.http.post("/v1/chat/completions", json=body, timeout=120)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "response_format")
    assert told in reply.json()["error"]["message"]
    assert "secret" not in reply.text
    rest = list(running)
    assert first.id == rest[-1].id
    assert rest[-1].choices[0].finish_reason == "length"
    person = by_schema(Person.model_json_schema())
    assert Person.model_validate_json(live.chat(response_format=person).choices[0].message.content)


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_can_not_be_followed_to_its_end_is_told_when_that_shows(start, stream):
    live = start()
    schema = {"anyOf": [{"type": "null"}, WIDE]}
    bias = {str(live.service.tokenizer.encode("{")[0]): 100}
    asked = {"response_format": by_schema(schema), "logit_bias": bias, "stream": stream}
    reply = live.http.post(
        "/v1/chat/completions", json={"model": live.model, "messages": MESSAGES, **asked}, timeout=120
    )
    assert "secret" not in reply.text
    assert "too complex" in reply.text
    if stream:
        assert reply.status_code == 200
        *_, failed, done, _ = reply.text.split("\n\n")
        assert json.loads(failed.removeprefix("data: "))["error"]["type"] == "invalid_request_error"
        assert done == "data: [DONE]"
    else:
        assert reply.status_code == 400
    live.wait_until_free()
    assert live.chat(max_tokens=3).choices[0].message.content is not None


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        ("chat/completions", {"response_format": {"type": "grammar"}}, "response_format"),
        (
            "chat/completions",
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema.json_schema",
        ),
        ("chat/completions", {"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
        ("responses", {"text": {"format": by_schema({})}}, "text.format.json_schema.name"),
        (
            "responses",
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}},
            "text.format",
        ),
        ("responses", {"response_format": {"type": "json_object"}}, "response_format"),
        ("completions", {"response_format": {"type": "json_object"}}, "response_format"),
        ("messages", {"response_format": {"type": "json_object"}, "max_tokens": 5}, "response_format"),
        (
            "chat/completions",
            {
                "tools": [
                    {"type": "function", "function": {"name": "f", "parameters": {"not": {}}, "strict": True}}
                ]
            },
            "tools",
        ),
    ],
)
def test_what_can_not_be_kept_to_is_refused_by_name(start, path, change, param):
    live = start()
    prompt = {"responses": {"input": "x"}, "completions": {"prompt": "x"}}.get(path, {"messages": MESSAGES})
    reply = live.http.post(f"/v1/{path}", json={"model": live.model, **prompt, **change})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_an_engine_that_plays_a_script_refuses_it(serve):
    live = serve(script=Script(["x"], scores(), scores()))
    body = {"model": live.model, "input": "x", "text": {"format": {"type": "json_object"}}}
    error = live.http.post("/v1/responses", json=body).json()["error"]
    assert error["param"] == "text.format"
    assert "not supported" in error["message"]
