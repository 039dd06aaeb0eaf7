"""Requests made to hurt: each gets a clear answer in OpenAI's shape, soon, and the next request works."""

import threading

import pytest
from structlog.testing import capture_logs

from server.drain import DrainPhase
from server.engines.scripted import Script
from tests.e2e.conftest import scores
from tests.waiting import until

PLAIN = Script(["a", "b", "c"], scores(count=10), scores(count=10))
JSON = {"content-type": "application/json"}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (TEXT, {"prompt": []}),
        (TEXT, {"prompt": [[]]}),
        (TEXT, {"prompt": ""}),
        (TEXT, {"prompt": [{}] * 1000}),
        (TEXT, {"prompt": ["x"] * 1000}),
        (TEXT, {"prompt": [1, "x"]}),
        (TEXT, {"prompt": [True]}),
        (TEXT, {"prompt": [-1]}),
        (TEXT, {"prompt": "x", "logit_bias": {"my secret": 1}}),
        (TEXT, {"prompt": "x", "max_tokens": 10**30}),
        (CHAT, {"messages": [{}] * 5000}),
        (CHAT, {"messages": [{"role": "user", "content": "x"}] * 5000}),
        (CHAT, {"tool_choice": "required"}),
        (CHAT, {"add_generation_prompt": False}),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}),
        (CHAT, {"metadata": {"my secret" * 20: "x"}}),
    ],
)
def test_odd_bodies_are_a_400_without_their_text(serve, path, change):
    live = serve(script=PLAIN)
    body = {
        "model": live.model,
        **({"messages": [{"role": "user", "content": "hi"}]} if path == CHAT else {}),
        **change,
    }
    reply = live.http.post(path, json=body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert "secret" not in reply.text
    assert live.chat().choices[0].message.content == "abc"


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_half_a_surrogate_pair_is_no_text(serve, path):
    live = serve(script=PLAIN)
    field = '"messages": [{"role": "user", "content": "\\ud800"}]' if path == CHAT else '"prompt": "\\ud800"'
    reply = live.http.post(path, content=f'{{"model": "{live.model}", {field}}}', headers=JSON)
    assert (reply.status_code, "Unicode" in reply.text) == (400, True)


def test_invalid_json_says_so_and_no_more(serve):
    reply = serve(script=PLAIN).http.post(CHAT, content=b'{"my secret": ', headers=JSON)
    assert (reply.status_code, reply.json()["error"]["message"]) == (400, "the body is not valid JSON")


def test_a_huge_prompt_is_refused_before_it_is_tokenised(serve, monkeypatch):
    live = serve(script=PLAIN)
    monkeypatch.setattr(type(live.service.tokenizer), "encode", lambda *_, **__: 1 / 0)
    reply = live.http.post(TEXT, json={"model": live.model, "prompt": "word " * 1_500_000})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert reply.json()["error"]["param"] == "prompt"


def test_a_failure_that_nobody_expected_is_answered_and_told_to_nobody_in_its_own_words(
    serve, monkeypatch, caplog
):
    """Its message may hold the prompt."""

    def fail(*_, **__):
        raise ValueError("heliotrope")

    live = serve(script=PLAIN)
    monkeypatch.setattr(type(live.service.tokenizer), "encode", fail)
    with capture_logs() as logged:
        reply = live.http.post(TEXT, json={"model": live.model, "prompt": "x"})
        until(lambda: any(entry["event"] == "request" for entry in logged))
    assert (reply.status_code, reply.json()["error"]["type"]) == (500, "server_error")
    (told,) = [entry for entry in logged if entry["event"] == "a request failed"]
    assert told["error"] == "ValueError"
    assert told["at"][-1].startswith("test_hostile_requests.py:")
    assert "heliotrope" not in reply.text + str(logged) + caplog.text


def test_a_client_that_reads_nothing_is_given_up(serve):
    script = Script(["word " * 2000] * 3000, scores(), scores(count=4000))
    live = serve(script=script, service_options={"stream_stalled_s": 0.3})
    body = {"model": live.model, "stream": True, "messages": [{"role": "user", "content": "x"}]}
    with live.http.stream("POST", CHAT, json=body):
        until(lambda: live.metric("interlock_stream_stalls_total") == 1)
        live.wait_until_free()


def test_while_the_server_drains_nothing_new_begins_and_streams_end_properly(serve):
    live = serve(script=Script(["w"] * 200, scores(), scores(), hold=threading.Event(), hold_from=1))
    stream = live.chat(stream=True)
    next(stream)
    live.service.drain.phase = DrainPhase.REFUSING
    refused = live.http.post(CHAT, json={"model": live.model, "messages": [{"role": "user", "content": "x"}]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    live.service.engine._stopped = True
    with pytest.raises(Exception, match="shutting down"):
        list(stream)


def test_a_flood_of_small_requests_leaves_nothing_behind(serve):
    live = serve(script=PLAIN)

    def some():
        for _ in range(25):
            assert live.chat().choices[0].message.content == "abc"

    threads = [threading.Thread(target=some) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    live.wait_until_free()
    assert (
        live.metric("interlock_requests_total", model="scripted", endpoint="chat", outcome="allowed") == 200
    )
