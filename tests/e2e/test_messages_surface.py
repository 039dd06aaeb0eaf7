"""/v1/messages, through the stock Anthropic client and a real socket: the same guard, told in content blocks."""

import anthropic
import pytest

from server.drain import DrainPhase
from server.engines.scripted import Script
from tests.e2e.conftest import scores
from tests.e2e.test_openai_surface import BLOCK_PROMPT, BLOCK_RESPONSE, PLAIN, WORDS

TEXT = "".join(WORDS)
BLOCKED = Script(WORDS, scores(), scores(harm={4: 0.9}))
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def claude(serve):
    """Start a server; the Anthropic client in front of it."""
    clients = []

    def start(*args, **options):
        live = serve(*args, **options)
        clients.append(anthropic.Anthropic(base_url=live.url, api_key="unused", max_retries=0))
        return clients[-1], live

    yield start
    for client in clients:
        client.close()


def create(client, **options):
    return client.messages.create(**{"model": "scripted", "max_tokens": 100, "messages": HELLO, **options})


def deltas(events):
    return "".join(event.delta.text for event in events if event.type == "content_block_delta")


def test_a_plain_message(claude):
    client, _ = claude(script=PLAIN)
    message = create(client)
    assert (message.type, message.role, message.content[0].text) == ("message", "assistant", TEXT)
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.output_tokens == 10
    assert message.usage.input_tokens == len("user: hello\n")
    assert message.model_extra["interlock"]["action"] == "allow"


def test_a_stream_is_the_message_in_events(claude):
    client, _ = claude(script=PLAIN)
    events = list(create(client, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[2:-3] == ["content_block_delta"] * 10
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert deltas(events) == TEXT
    assert events[0].message.usage.input_tokens == len("user: hello\n")
    assert (events[-2].delta.stop_reason, events[-2].usage.output_tokens) == ("end_turn", 10)


def test_the_clients_own_accumulator_comes_to_the_same_message(claude):
    client, _ = claude(script=PLAIN)
    with client.messages.stream(model="scripted", max_tokens=100, messages=HELLO) as stream:
        streamed = stream.get_final_message()
    whole = create(client)
    assert streamed.content[0].text == whole.content[0].text
    assert (streamed.stop_reason, streamed.usage.output_tokens) == (whole.stop_reason, 10)


def test_system_and_blocks_become_the_conversation(claude):
    seen = []

    def played(request):
        seen.append(bytes(request.prompt_ids).decode())
        return PLAIN

    client, _ = claude(script=played)
    first = create(client)
    parts = [
        {"type": "text", "text": "and ", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "now?"},
    ]
    messages = [*HELLO, {"role": "assistant", "content": first.content}, {"role": "user", "content": parts}]
    system = [{"type": "text", "text": "Be brief."}]
    create(client, messages=messages, system=system)
    assert seen[-1] == f"system: Be brief.\nuser: hello\nassistant: {TEXT}\nuser: and now?\n"
    counted = client.messages.count_tokens(model="scripted", messages=messages, system=system)
    assert counted.input_tokens == len(seen[-1])


@pytest.mark.parametrize("stream", [False, True])
def test_why_a_message_stopped(claude, stream):
    client, _ = claude(script=PLAIN)

    def stop(**options):
        reply = create(client, stream=stream, **options)
        if stream:
            *_, event, _ = reply  # the last but one
            reply = event.delta
        return reply.stop_reason, reply.stop_sequence

    assert stop(max_tokens=3) == ("max_tokens", None)
    assert stop(stop_sequences=[" there"]) == ("stop_sequence", " there")
    assert stop(stop_sequences=["never"]) == ("end_turn", None)
    assert stop(stop_sequences=["never", " there"]) == ("stop_sequence", None)


def test_a_blocked_prompt_is_a_400_in_anthropics_shape(claude):
    client, _ = claude(BLOCK_PROMPT, Script(WORDS, scores(harm={2: 0.9}), scores()))
    for stream in (False, True):
        with pytest.raises(anthropic.BadRequestError) as caught:
            create(client, stream=stream)
        body = caught.value.body
        assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
        assert (body["error"]["message"], body["error"]["code"]) == ("Withheld.", "content_filter")
        assert body["interlock"]["action"] == "block"


def test_a_blocked_message_is_a_refusal_without_its_text(claude):
    client, _ = claude(BLOCK_RESPONSE, BLOCKED)
    message = create(client)
    assert (message.content, message.stop_reason) == ([], "refusal")
    assert message.stop_details.explanation == "Withheld."


def test_a_blocked_stream_shows_nothing_from_the_blocking_token_on(claude):
    client, _ = claude(BLOCK_RESPONSE, BLOCKED)
    events = list(create(client, stream=True))
    assert deltas(events) == "Once upon a time"
    assert [event.type for event in events[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
    assert events[-2].delta.stop_reason == "refusal"
    assert events[-2].delta.stop_details.explanation == "Withheld."


def test_holdback_holds_here_too(claude):
    policy = BLOCK_RESPONSE.replace("rules:", "defaults: {holdback: 2}\nrules:")
    client, _ = claude(policy, BLOCKED)
    assert deltas(create(client, stream=True)) == "Once upon"


def test_a_replaced_message_is_an_ordinary_one(claude):
    policy = BLOCK_PROMPT.replace("block: {", "replace: {").replace("action: block", "action: replace")
    client, _ = claude(policy, Script(WORDS, scores(harm={2: 0.9}), scores()))
    assert create(client).content[0].text == "Withheld."
    events = list(create(client, stream=True))
    assert events[0].type == "message_start"
    assert (deltas(events), events[-2].delta.stop_reason) == ("Withheld.", "end_turn")


def test_an_engine_failure_is_a_503_or_an_error_event(claude):
    client, _ = claude(script=Script(WORDS, scores(), scores(), fail_at=3))
    with pytest.raises(anthropic.InternalServerError) as caught:
        create(client)
    assert caught.value.body["error"]["code"] == "engine_error"
    with pytest.raises(anthropic.APIStatusError) as in_stream:
        list(create(client, stream=True))
    assert in_stream.value.body["error"]["code"] == "engine_error"


def test_every_error_has_anthropics_shape(claude):
    _, live = claude(script=PLAIN)
    missing = live.http.post("/v1/messages", json={"model": "other", "max_tokens": 1, "messages": HELLO})
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")
    huge = live.http.post("/v1/messages", content=b" " * (9 * 1024 * 1024))
    assert (huge.status_code, huge.json()["error"]["type"]) == (413, "request_too_large")
    live.service.drain.phase = DrainPhase.REFUSING
    draining = live.http.post("/v1/messages", json={"model": "scripted", "max_tokens": 1, "messages": HELLO})
    assert (draining.status_code, draining.json()["error"]["type"]) == (503, "overloaded_error")
    assert {reply.json()["type"] for reply in (missing, huge, draining)} == {"error"}


@pytest.mark.parametrize(
    "change",
    [
        {"tools": [{"name": "f", "input_schema": {}}]},
        {"tool_choice": {"type": "any"}},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"mcp_servers": [{"url": "my secret"}]},
        {"service_tier": "priority"},
        {"output_config": {"effort": "low"}},
        {"max_tokens": 0},
        {"max_tokens": None},
        {"temperature": 1.5},
        {"n": 2},
        {"stop": "x"},
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": "my secret"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "my secret"}]}]},
        {"messages": [*HELLO, {"role": "assistant", "content": "my secret"}]},
    ],
)
def test_what_is_not_served_is_a_400_that_names_it(claude, change):
    _, live = claude(script=PLAIN)
    body = {"model": "scripted", "max_tokens": 10, "messages": HELLO, "system": "my secret", **change}
    reply = live.http.post("/v1/messages", json=body)
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")
    (field,) = change
    assert field.rstrip("s") in reply.json()["error"]["message"]
    assert "secret" not in reply.text


def test_it_is_audited_as_what_it_is_and_holds_nothing_afterwards(claude):
    client, live = claude(BLOCK_RESPONSE, BLOCKED)
    create(client, metadata={"user_id": "u" * 200})
    (record,) = live.records()
    assert (record["endpoint"], record["outcome"], record["token"]) == ("messages", "blocked", 4)
    live.wait_until_free()
