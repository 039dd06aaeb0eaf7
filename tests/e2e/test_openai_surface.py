"""The OpenAI surface, through the stock client and a real socket."""

import openai
import pytest

from server.engines.base import FinishReason
from server.engines.scripted import Script
from tests.e2e.conftest import scores

WORDS = ["Once", " upon", " a", " time", ",", " there", " was", " a", " guard", "."]
PLAIN = Script(WORDS, scores(), scores())
BLOCK_RESPONSE = """
apiVersion: interlock/v1
kind: Policy
metadata: {name: p, version: "1"}
rules:
  - {id: block, when: max(response.harm) > 0.5, then: {block: {message: "Withheld."}}}
tests:
  - {name: t, given: {response: {harm: "0.9"}}, expect: {action: block}}
"""
BLOCK_PROMPT = BLOCK_RESPONSE.replace("response", "prompt")


def test_a_plain_reply(serve):
    live = serve(script=PLAIN)
    reply = live.chat()
    assert reply.choices[0].message.content == "".join(WORDS)
    assert reply.choices[0].message.refusal is None
    assert reply.choices[0].finish_reason == "stop"
    assert reply.object == "chat.completion"
    assert reply.usage.completion_tokens == 10
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 10
    assert reply.model_extra["interlock"]["action"] == "allow"


def test_a_stream_is_the_reply_in_pieces_and_ends_with_done(serve):
    live = serve(script=PLAIN)
    chunks = list(live.chat(stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "".join(WORDS)
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    with live.http.stream(
        "POST",
        "/v1/chat/completions",
        json={"model": live.model, "stream": True, "messages": [{"role": "user", "content": "x"}]},
    ) as raw:
        assert raw.headers["x-accel-buffering"] == "no"
        assert raw.headers["content-type"].startswith("text/event-stream")
        assert raw.read().endswith(b"data: [DONE]\n\n")


def test_usage_comes_in_a_last_chunk_when_asked_for(serve):
    live = serve(script=PLAIN)
    chunks = list(live.chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 10
    assert all(chunk.usage is None for chunk in chunks[:-1])


@pytest.mark.parametrize("n", [1, 2, 4])
def test_n_choices_streamed_and_not(serve, n):
    live = serve(script=PLAIN)
    assert [choice.index for choice in live.chat(n=n).choices] == list(range(n))
    texts = [""] * n
    for chunk in live.chat(n=n, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == ["".join(WORDS)] * n


def test_stop_and_max_tokens(serve):
    live = serve(script=PLAIN)
    stopped = live.chat(stop=[" there"])
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == (
        "Once upon a time,",
        "stop",
    )
    cut = live.chat(max_completion_tokens=3)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == (
        "Once upon a",
        FinishReason.LENGTH,
    )


def test_completions_take_text_batches_and_token_ids(serve):
    live = serve(script=PLAIN)
    create = live.client.completions.create
    assert create(model=live.model, prompt="hi", max_tokens=2).choices[0].text == "Once upon"
    batch = create(model=live.model, prompt=["a", "b"], n=2, max_tokens=1)
    assert [choice.index for choice in batch.choices] == [0, 1, 2, 3]
    assert create(model=live.model, prompt=[65, 66], max_tokens=1, echo=True).choices[0].text == "ABOnce"
    streamed = create(model=live.model, prompt="hi", max_tokens=4, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == "Once upon a time"


def test_a_blocked_prompt_is_a_400_with_the_content_filter_code(serve):
    live = serve(BLOCK_PROMPT, Script(WORDS, scores(harm={2: 0.9}), scores()))
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            live.chat(stream=stream)
        assert caught.value.code == "content_filter"
        assert caught.value.type == "invalid_request_error"
        assert caught.value.param == "messages"
        assert caught.value.body["message"] == "Withheld."
        assert caught.value.response.headers["x-interlock-action"] == "block"
        assert caught.value.response.json()["interlock"]["phase"] == "prompt"


def test_a_misalignment_block_is_a_403(serve):
    policy = BLOCK_PROMPT.replace('message: "Withheld."', "code: misalignment_policy_violation")
    live = serve(policy, Script(WORDS, scores(harm={2: 0.9}), scores()))
    with pytest.raises(openai.PermissionDeniedError) as caught:
        live.chat()
    assert caught.value.code == "misalignment_policy_violation"
    assert caught.value.body["misalignment"]["error_type"] == "other"


def test_a_blocked_response(serve):
    live = serve(BLOCK_RESPONSE, Script(WORDS, scores(), scores(harm={4: 0.9})))
    whole = live.chat().choices[0]
    assert (whole.message.content, whole.message.refusal, whole.finish_reason) == (
        None,
        "Withheld.",
        "content_filter",
    )
    chunks = list(live.chat(stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Once upon a time"
    assert [chunk.choices[0].delta.refusal for chunk in chunks if chunk.choices[0].delta.refusal] == [
        "Withheld."
    ]
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    completion = live.client.completions.create(model=live.model, prompt="x").choices[0]
    assert (completion.text, completion.finish_reason) == ("Once upon a time", "content_filter")


def test_a_replaced_reply(serve):
    policy = BLOCK_PROMPT.replace("block: {", "replace: {").replace("action: block", "action: replace")
    live = serve(policy, Script(WORDS, scores(harm={2: 0.9}), scores()))
    choice = live.chat().choices[0]
    assert (choice.message.content, choice.finish_reason) == ("Withheld.", "stop")
    chunks = list(live.chat(stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Withheld."
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_steered_reply_asks_the_engine_for_the_vector(serve):
    policy = """
apiVersion: interlock/v1
kind: Policy
metadata: {name: p, version: "1"}
rules:
  - {id: calm-down, when: max(response.harm) > 0.5, then: {steer: {vector: calm, strength: 2.5, for_tokens: 3}}}
tests:
  - {name: t, given: {response: {harm: "0.9"}}, expect: {action: steer}}
"""
    live = serve(policy, Script(WORDS, scores(), scores(harm={4: 0.9})))
    reply = live.chat()
    assert reply.choices[0].message.content == "".join(WORDS)
    assert reply.model_extra["interlock"]["action"] == "steer"
    _, command = live.service.engine.steered[0]
    assert (command.vector, command.strength, command.for_tokens) == ("calm", 2.5, 3)
    assert live.metric("interlock_requests_total", model="scripted", endpoint="chat", outcome="steered") == 1


def test_an_engine_failure_is_a_503_or_an_error_event(serve):
    live = serve(script=Script(WORDS, scores(), scores(), fail_at=3))
    with pytest.raises(openai.InternalServerError) as caught:
        live.chat()
    assert caught.value.code == "engine_error"
    received = []
    with pytest.raises(openai.APIError) as in_stream:
        received.extend(_contents(live.chat(stream=True)))
    assert in_stream.value.code == "engine_error"


def _contents(stream):
    for chunk in stream:
        yield chunk.choices[0].delta.content or ""


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 9}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "role"),
        ({"n": 0}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_a_bad_field_is_a_400_that_names_it_and_repeats_no_input(serve, change, word):
    live = serve(script=PLAIN)
    body = {"model": live.model, "messages": [{"role": "user", "content": "my secret"}], **change}
    reply = live.http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 400
    assert word in reply.json()["error"]["message"]
    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert "secret" not in reply.text


def test_unknown_model_path_method_and_body(serve):
    live = serve(script=PLAIN)
    with pytest.raises(openai.NotFoundError) as caught:
        live.client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "model_not_found"
    assert live.http.get("/nowhere").json()["error"]["code"] == "not_found"
    assert live.http.get("/v1/completions").status_code == 405
    json = {"content-type": "application/json"}
    assert live.http.post("/v1/completions", content=b"{nope", headers=json).status_code == 400
    assert (
        live.http.post("/v1/completions", content=b"{}").json()["error"]["code"] == "unsupported_media_type"
    )
    huge = live.http.post("/v1/completions", content=b" " * (9 * 1024 * 1024))
    assert (huge.status_code, huge.json()["error"]["code"]) == (413, "body_too_large")


def test_models_health_version_and_metrics(serve):
    live = serve(script=PLAIN, expose_metrics=True)
    assert [model.id for model in live.client.models.list()] == ["scripted"]
    assert live.client.models.retrieve("scripted").id == "scripted"
    assert live.http.get("/health").status_code == 200
    assert live.http.get("/version").json()["version"]
    live.chat()
    text = live.http.get("/metrics").text
    assert 'interlock_requests_total{endpoint="chat",model="scripted",outcome="allowed"} 1.0' in text
    assert "interlock_tokens_total" in text


def test_metrics_are_not_on_the_serving_port_unless_asked_for(serve):
    assert serve(script=PLAIN).http.get("/metrics").status_code == 404


def test_the_request_id_is_echoed_if_it_is_valid(serve):
    live = serve(script=PLAIN)
    assert live.http.get("/version", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    odd = live.http.get("/version", headers={"x-request-id": "a b\t<script>"}).headers["x-request-id"]
    assert len(odd) == 32


def test_the_decision_log_has_scores_and_no_text(serve):
    live = serve(BLOCK_RESPONSE, Script(WORDS, scores(), scores(harm={4: 0.9})))
    live.chat("a very private question", stream=False)
    (record,) = live.records()
    assert (record["action"], record["phase"], record["token"], record["outcome"]) == (
        "block",
        "response",
        4,
        "blocked",
    )
    assert record["delivered_tokens"] == 4
    assert record["scores"]["response"]["harm"]["n"] == 5
    assert "private" not in live.audit_path.read_text()
    assert "Once" not in live.audit_path.read_text()
