"""What monitors say: /v1/moderations, and the `moderation` object of chat, to those who may see it."""

import pytest

from server.engines.scripted import Script
from tests.e2e.conftest import ALLOW_ONLY, scores

POLICY = """
apiVersion: interlock/v1
kind: Policy
metadata: {name: p, version: "1"}
rules:
  - {id: block, when: max(prompt.harm) > 0.85, then: {block: {message: "Withheld."}}}
  - {id: block-reply, when: max(response.harm) > 0.85, then: {block: {message: "Withheld."}}}
tests:
  - {name: t, given: {prompt: {harm: "0.9"}}, expect: {action: block}}
"""
WORDS = ["Once", " upon", " a", " time"]
OPEN = {"service_options": {"show_scores": True}}


def by_text(request):
    """Plays as harmful as the text says: `90%` has a harm of 0.9, and no token of it is generated."""
    text = bytes(request.prompt_ids).decode()
    harm = next((int(word.rstrip("%\n")) / 100 for word in text.split(" ") if "%" in word), 0.1)
    assert request.sampling.max_tokens == 0
    return Script(WORDS, scores(harm={3: harm}), scores())


def test_each_text_gets_its_scores_and_what_exceeds_its_threshold_is_flagged(serve):
    live = serve(ALLOW_ONLY, by_text, **OPEN)
    reply = live.client.moderations.create(input=["20% harmful", "70% harmful", "30% harmful"])
    assert [result.flagged for result in reply.results] == [False, True, False]
    found = [result.model_dump() for result in reply.results]
    assert [result["category_scores"]["harm"] for result in found] == pytest.approx([0.2, 0.7, 0.3])
    assert [result["categories"]["harm"] for result in found] == [False, True, False]
    assert [result["categories"]["deception"] for result in found] == [False] * 3
    assert reply.model == "scripted"
    assert reply.id.startswith("modr-")


def test_what_the_policy_blocks_is_flagged_and_no_error(serve):
    live = serve(POLICY, by_text, **OPEN)
    raw = live.client.moderations.with_raw_response.create(
        input="90% harmful", model="omni-moderation-latest"
    )
    assert raw.parse().results[0].flagged
    assert raw.headers["x-interlock-action"] == "block"


def test_who_may_not_see_scores_is_told_what_the_policy_does_and_no_more(serve):
    live = serve(POLICY, by_text)
    reply = live.http.post("/v1/moderations", json={"input": ["70% harmful", "90% harmful"]})
    allowed, blocked = reply.json()["results"]
    assert (allowed["flagged"], allowed["category_scores"]) == (False, {"policy": 0.0})
    assert (blocked["flagged"], blocked["categories"]) == (True, {"policy": True})
    assert "harm" not in reply.text


def test_only_the_prompt_is_read_and_it_is_audited_and_counted(serve):
    live = serve(POLICY, by_text)
    live.client.moderations.create(input="90% harmful")
    (record,) = live.records()
    assert (record["endpoint"], record["action"], record["outcome"]) == ("moderations", "block", "blocked")
    assert record["usage"]["completion_tokens"] == 0
    assert (
        live.metric("interlock_requests_total", model="scripted", endpoint="moderations", outcome="blocked")
        == 1
    )
    assert live.metric("interlock_tokens_total", model="scripted", type="completion") == 0
    live.wait_until_free()


def test_the_parts_of_one_text_are_one_input(serve):
    live = serve(ALLOW_ONLY, by_text, **OPEN)
    parts = [{"type": "text", "text": "90"}, {"type": "text", "text": "% harmful"}]
    (result,) = live.client.moderations.create(input=parts).results
    assert result.flagged


def test_a_monitor_that_gives_no_score_fails_closed(serve):
    script = Script(WORDS, {"harm": [0.1] * 200}, scores())  # of deception there is nothing
    live = serve(ALLOW_ONLY, lambda _: script, **OPEN)
    reply = live.http.post("/v1/moderations", json={"input": "x"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "interlock_unavailable")


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"input": []}, 400, "input"),
        ({"input": ""}, 400, "input"),
        ({"input": ["my secret"] * 40}, 400, "input"),
        ({"input": [{"type": "image_url", "image_url": {"url": "my secret"}}]}, 400, "input"),
        ({"input": "my secret", "model": "other"}, 404, "model"),
        ({"input": "my secret " * 500_000}, 400, "input"),
    ],
)
def test_a_bad_body_is_refused_without_its_text(serve, change, status, param):
    reply = serve(script=Script(WORDS, scores(), scores())).http.post("/v1/moderations", json=change)
    assert reply.status_code == status
    assert reply.json()["error"]["param"].startswith(param)
    assert "secret" not in reply.text


# --- the `moderation` object of chat


ASKED = {"moderation": {"model": "omni-moderation-latest"}}


def test_chat_returns_scores_of_prompt_and_of_each_response_when_asked(serve):
    live = serve(ALLOW_ONLY, Script(WORDS, scores(), scores(harm={1: 0.8})), **OPEN)
    assert live.chat().moderation is None
    moderation = live.chat(n=2, extra_body=ASKED).moderation
    (given,) = moderation.input.results
    assert (given.flagged, given.category_scores["harm"]) == (False, pytest.approx(0.1))
    assert [result.flagged for result in moderation.output.results] == [True, True]
    assert moderation.output.results[0].category_scores["harm"] == pytest.approx(0.8)


def test_a_stream_returns_them_in_one_last_chunk(serve):
    live = serve(ALLOW_ONLY, Script(WORDS, scores(), scores(harm={1: 0.8})), **OPEN)
    chunks = list(live.chat(stream=True, extra_body=ASKED))
    assert [chunk.moderation is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []
    assert chunks[-1].moderation.output.results[0].categories["harm"]


def test_scores_of_a_reply_that_was_withheld_are_returned_too(serve):
    live = serve(POLICY, Script(WORDS, scores(), scores(harm={1: 0.9})), **OPEN)
    reply = live.chat(extra_body=ASKED)
    assert reply.choices[0].finish_reason == "content_filter"
    assert reply.moderation.output.results[0].flagged


def test_who_may_not_see_scores_is_refused_before_anything_runs(serve):
    live = serve(ALLOW_ONLY, Script(WORDS, scores(), scores()))
    body = {"model": live.model, "messages": [{"role": "user", "content": "x"}], **ASKED}
    reply = live.http.post("/v1/chat/completions", json=body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "scores_not_allowed")
    assert "harm" not in reply.text
    assert live.records() == []


def test_a_request_can_not_ask_to_block(serve):
    live = serve(ALLOW_ONLY, Script(WORDS, scores(), scores()), **OPEN)
    policy = {"model": "scripted", "policy": {"output": {"mode": "block"}}}
    body = {"model": live.model, "messages": [{"role": "user", "content": "x"}], "moderation": policy}
    reply = live.http.post("/v1/chat/completions", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "moderation.policy.output.mode")
