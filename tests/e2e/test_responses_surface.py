"""/v1/responses, through the stock client and a real socket: the same guard, told in typed events."""

import openai
import pytest

from server.engines.scripted import Script
from tests.e2e.conftest import ALLOW_ONLY, scores
from tests.e2e.test_openai_surface import BLOCK_PROMPT, BLOCK_RESPONSE, PLAIN, WORDS

TEXT = "".join(WORDS)
BLOCKED = Script(WORDS, scores(), scores(harm={4: 0.9}))


def create(live, said="hello", **options):
    return live.client.responses.create(model=live.model, input=said, **options)


def kinds(events):
    return [event.type for event in events]


def test_a_plain_response(serve):
    live = serve(script=PLAIN)
    response = create(live, metadata={"a": "b"}, temperature=0.5)
    assert (response.object, response.status, response.output_text) == ("response", "completed", TEXT)
    assert response.id.startswith("resp_")
    assert (response.usage.output_tokens, response.store) == (10, False)
    assert response.usage.total_tokens == response.usage.input_tokens + 10
    assert (response.metadata, response.temperature) == ({"a": "b"}, 0.5)
    assert response.incomplete_details is None
    assert response.model_extra["interlock"]["action"] == "allow"


def test_a_stream_is_the_response_in_typed_events(serve):
    live = serve(script=PLAIN)
    events = list(create(live, stream=True))
    assert kinds(events)[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds(events)[4:-4] == ["response.output_text.delta"] * 10
    assert kinds(events)[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events[4:-4]) == TEXT
    final = events[-1].response
    assert final.output_text == TEXT
    assert final.usage == create(live).usage
    assert {event.response.id for event in events if hasattr(event, "response")} == {final.id}
    assert final.model_extra["interlock"]["action"] == "allow"


def test_the_clients_own_accumulator_comes_to_the_same_response(serve):
    live = serve(script=PLAIN)
    with live.client.responses.stream(model=live.model, input="hello") as stream:
        assert stream.get_final_response().output_text == TEXT


def test_input_items_and_instructions_become_the_conversation(serve):
    seen = []

    def played(request):
        seen.append(bytes(request.prompt_ids).decode())
        return PLAIN

    live = serve(script=played)
    first = create(live, "one")
    items = [{"role": "user", "content": "one"}, *(item.model_dump() for item in first.output)]
    refusal = {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    asked = {
        "role": "user",
        "content": [{"type": "input_text", "text": "and "}, {"type": "input_text", "text": "now?"}],
    }
    create(live, [*items, refusal, asked], instructions="Be brief.")
    assert seen[-1] == (f"system: Be brief.\nuser: one\nassistant: {TEXT}\nassistant: No.\nuser: and now?\n")


def test_a_response_that_is_cut_is_incomplete(serve):
    live = serve(script=PLAIN)
    response = create(live, max_output_tokens=3)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.output_text == "Once upon a"
    last = list(create(live, max_output_tokens=3, stream=True))[-1]
    assert (last.type, last.response.output_text) == ("response.incomplete", "Once upon a")


def test_a_blocked_prompt_is_a_400_that_names_the_input(serve):
    live = serve(BLOCK_PROMPT, Script(WORDS, scores(harm={2: 0.9}), scores()))
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            create(live, stream=stream)
        assert (caught.value.code, caught.value.param) == ("content_filter", "input")


def test_a_blocked_response_is_incomplete_with_a_refusal(serve):
    live = serve(BLOCK_RESPONSE, BLOCKED)
    response = create(live)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "content_filter")
    (part,) = response.output[0].content
    assert (part.type, part.refusal, response.output_text) == ("refusal", "Withheld.", "")
    assert response.model_extra["interlock"]["action"] == "block"


def test_a_blocked_stream_shows_nothing_from_the_blocking_token_on(serve):
    live = serve(BLOCK_RESPONSE, BLOCKED)
    events = list(create(live, stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == "Once upon a time"
    assert kinds(events)[-8:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.content_part.added",
        "response.refusal.delta",
        "response.refusal.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert next(event.refusal for event in events if event.type == "response.refusal.done") == "Withheld."
    final = events[-1].response
    assert final.incomplete_details.reason == "content_filter"
    assert [part.type for part in final.output[0].content] == ["output_text", "refusal"]


def test_holdback_holds_here_too(serve):
    policy = BLOCK_RESPONSE.replace("rules:", "defaults: {holdback: 2}\nrules:")
    events = create(serve(policy, BLOCKED), stream=True)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == "Once upon"


def test_a_replaced_response_is_complete(serve):
    policy = BLOCK_PROMPT.replace("block: {", "replace: {").replace("action: block", "action: replace")
    live = serve(policy, Script(WORDS, scores(harm={2: 0.9}), scores()))
    assert (create(live).status, create(live).output_text) == ("completed", "Withheld.")
    events = list(create(live, stream=True))
    assert kinds(events)[0] == "response.created"
    assert events[-1].response.output_text == "Withheld."


def test_an_engine_failure_is_a_503_or_ends_the_stream_with_an_error(serve):
    live = serve(script=Script(WORDS, scores(), scores(), fail_at=3))
    with pytest.raises(openai.InternalServerError) as caught:
        create(live)
    assert caught.value.code == "engine_error"
    received = []
    with pytest.raises(openai.APIError) as in_stream:
        received.extend(create(live, stream=True))
    assert in_stream.value.code == "engine_error"


def test_a_failed_stream_says_so_in_a_typed_event_before_the_error(serve):
    live = serve(script=Script(WORDS, scores(), scores(), fail_at=3))
    body = {"model": live.model, "input": "x", "stream": True}
    text = live.http.post("/v1/responses", json=body).text
    assert text.count("event: response.failed\n") == 1
    assert text.rstrip().rsplit("\n\n", 1)[1].startswith("event: error\n")
    assert "response.completed" not in text


def test_scores_are_returned_to_who_may_see_them(serve):
    asked = {"moderation": {"model": "omni-moderation-latest"}}
    script = Script(WORDS, scores(), scores(harm={1: 0.8}))
    live = serve(ALLOW_ONLY, script, service_options={"show_scores": True})
    moderation = create(live, extra_body=asked).moderation
    assert (moderation.input.flagged, moderation.output.flagged) == (False, True)
    assert list(create(live, stream=True, extra_body=asked))[-1].response.moderation.output.flagged
    with pytest.raises(openai.PermissionDeniedError):
        create(serve(ALLOW_ONLY, script), extra_body=asked)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("store", True),
        ("background", True),
        ("tools", [{"type": "web_search"}]),
        ("tool_choice", "required"),
        ("reasoning", {"effort": "high"}),
        ("truncation", "auto"),
        ("prompt", {"id": "pmpt_1"}),
        ("include", ["reasoning.encrypted_content"]),
        ("text", {"format": {"type": "json_object"}}),
        ("n", 2),
        ("stop", "x"),
        ("messages", [{"role": "user", "content": "my secret"}]),
        ("max_tokens", 5),
        ("input", [{"type": "function_call_output", "call_id": "1", "output": "my secret"}]),
        ("input", [{"role": "user", "content": [{"type": "input_image", "image_url": "my secret"}]}]),
        ("input", []),
    ],
)
def test_what_is_not_served_is_a_400_that_names_the_field(serve, field, value):
    live = serve(script=PLAIN)
    reply = live.http.post("/v1/responses", json={"model": live.model, "input": "my secret", field: value})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].split(".")[0] == field
    assert field in reply.json()["error"]["message"]
    assert "secret" not in reply.text


def test_what_asks_for_nothing_is_accepted(serve):
    live = serve(script=PLAIN)
    create(
        live,
        store=False,
        tool_choice="auto",
        parallel_tool_calls=True,
        truncation="disabled",
        reasoning={"effort": None},
        text={"format": {"type": "text"}, "verbosity": "medium"},
        service_tier="auto",
        prompt_cache_key="k",
        safety_identifier="u",
    )
    assert live.metric("interlock_request_unknown_fields_total") == 0


def test_it_is_audited_as_what_it_is(serve):
    live = serve(BLOCK_RESPONSE, BLOCKED)
    create(live)
    (record,) = live.records()
    assert (record["endpoint"], record["outcome"], record["token"]) == ("responses", "blocked", 4)
