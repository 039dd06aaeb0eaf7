"""LiteLLM's Generic Guardrail API: what it sends, and what it does on each answer."""

import pytest

from server.engines.scripted import Script
from tests.e2e.conftest import scores

PATH = "/beta/litellm_basic_guardrail_api"
BLOCK = """
apiVersion: interlock/v1
kind: Policy
metadata: {name: p, version: "1"}
rules:
  - {id: block, when: max(prompt.harm) > 0.5, then: {block: {message: "Withheld."}}}
tests:
  - {name: t, given: {prompt: {harm: "0.9"}}, expect: {action: block}}
"""
REPLACE = BLOCK.replace("block: {", "replace: {").replace("action: block", "action: replace")


class Reader:
    """Finds a prompt harmful that says `bad`, and remembers what it read."""

    def __init__(self):
        self.read = []

    def __call__(self, request):
        assert request.sampling.max_tokens == 0
        self.read.append(bytes(request.prompt_ids).decode())
        return Script(["x"], scores(0.9 if "bad" in self.read[-1] else 0.1), scores())


@pytest.fixture
def guardrail(serve):
    """Start a server; what it answers to a call of LiteLLM's."""

    def start(policy=BLOCK):
        reader = Reader()
        live = serve(policy, reader)

        def call(**body):
            return live.http.post(PATH, json={"input_type": "request", "request_data": {}, **body})

        return call, reader, live

    return start


def test_a_request_is_read_as_the_conversation_that_it_is(guardrail):
    call, reader, _ = guardrail()
    rows = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "good"}]},
    ]
    reply = call(structured_messages=rows, texts=["be kind", "good"], model="gpt-9")
    assert (reply.status_code, reply.json()["action"]) == (200, "NONE")
    assert reader.read == ["system: be kind\nuser: good\n"]


def test_a_blocked_request_says_why(guardrail):
    call, _, live = guardrail()
    reply = call(texts=["good", "bad"], litellm_call_id="call-1").json()
    assert (reply["action"], reply["blocked_reason"]) == ("BLOCKED", "Withheld.")
    assert reply["interlock"]["action"] == "block"
    records = live.records()
    assert {record["request_id"] for record in records} == {"call-1"}
    assert sorted(record["action"] for record in records) == ["allow", "block"]


def test_a_text_that_is_none_of_the_messages_is_read_too(guardrail):
    """An earlier guardrail may have changed the texts and left the messages."""
    call, reader, _ = guardrail()
    reply = call(structured_messages=[{"role": "user", "content": "good"}], texts=["bad"])
    assert reply.json()["action"] == "BLOCKED"
    assert len(reader.read) == 2


def test_each_text_of_a_response_is_read_as_the_assistants(guardrail):
    call, reader, _ = guardrail()
    assert call(input_type="response", texts=["good", "fine"]).json()["action"] == "NONE"
    assert sorted(reader.read) == ["user: \nassistant: fine\n", "user: \nassistant: good\n"]
    assert call(input_type="response", texts=["good", "bad"]).json()["action"] == "BLOCKED"


@pytest.mark.parametrize("input_type", ["request", "response"])
def test_arguments_of_tool_calls_are_read(guardrail, input_type):
    call, _, _ = guardrail()
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": "bad"}'}}]
    assert call(input_type=input_type, tool_calls=calls).json()["action"] == "BLOCKED"
    rows = [{"role": "assistant", "content": None, "tool_calls": calls}, {"role": "tool", "content": "ok"}]
    assert call(structured_messages=rows).json()["action"] == "BLOCKED"


def test_what_a_tool_returned_is_read(guardrail):
    call, reader, _ = guardrail()
    rows = [{"role": "user", "content": "go"}, {"role": "tool", "tool_call_id": "1", "content": "bad"}]
    assert call(structured_messages=rows).json()["action"] == "BLOCKED"
    assert reader.read == ["user: go\nuser: bad\n"]


def test_a_replaced_response_comes_back_with_other_texts(guardrail):
    call, _, _ = guardrail(REPLACE)
    reply = call(input_type="response", texts=["good", "bad"]).json()
    assert (reply["action"], reply["texts"]) == ("GUARDRAIL_INTERVENED", ["good", "Withheld."])


def test_a_request_is_never_replaced_but_blocked(guardrail):
    """The replacement would reach the model as if the user had said it."""
    call, _, _ = guardrail(REPLACE)
    assert call(texts=["bad"]).json()["action"] == "BLOCKED"


def test_a_long_conversation_is_one_prompt(guardrail):
    call, reader, _ = guardrail()
    texts = [f"{index}" for index in range(100)]
    rows = [{"role": "user", "content": text} for text in texts]
    assert call(structured_messages=rows, texts=texts).json()["action"] == "NONE"
    assert len(reader.read) == 1


def test_nothing_to_read_is_nothing_to_object_to(guardrail):
    call, reader, _ = guardrail()
    assert call(texts=[""]).json() == {"action": "NONE"}
    assert reader.read == []


def test_where_the_guard_can_not_judge_it_says_so_and_litellm_fails_closed(serve):
    live = serve(BLOCK, Script(["x"], {}, scores()))
    reply = live.http.post(PATH, json={"input_type": "request", "texts": ["x"]})
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "interlock_unavailable")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"images": ["my secret"]}, "images"),
        ({"input_type": "both"}, "input_type"),
        ({"texts": ["my secret"] * 100}, "texts"),
        ({"texts": "my secret"}, "texts"),
        (
            {"structured_messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "structured_messages.0",
        ),
    ],
)
def test_what_can_not_be_judged_is_refused_by_name(guardrail, body, param):
    call, _, _ = guardrail()
    reply = call(**body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].startswith(param)
    assert "secret" not in reply.text
