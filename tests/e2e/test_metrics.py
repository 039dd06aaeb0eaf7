"""What a scrape shows after real requests: names and labels as documented, and none that a client chose."""

import re

import httpx

from server.engines.scripted import Script
from tests.e2e.conftest import scores

HOLDING = """
apiVersion: interlock/v1
kind: Policy
metadata: {name: holding, version: "1"}
defaults: {holdback: 2}
rules:
  - {id: calm-down, when: last(response.harm) > 0.5, then: {steer: {vector: calm, strength: 1, for_tokens: 2}}}
tests:
  - {name: t, given: {response: {harm: "0.9"}}, expect: {action: steer}}
"""
STEERED_PROMPT = """
apiVersion: interlock/v1
kind: Policy
metadata: {name: pushed, version: "1"}
rules:
  - {id: push, when: max(prompt.cosine) > -2, then: {steer: {vector: push, strength: 1}}}
tests:
  - {name: t, given: {prompt: {cosine: "0.9"}}, expect: {action: steer}}
"""


def stage(live, name):
    """How often a stage was timed, and for how long in all."""
    return [
        live.metric(f"interlock_monitor_overhead_seconds_{part}", stage=name) for part in ("count", "sum")
    ]


def test_the_guards_time_is_told_by_stage(serve_tiny):
    live = serve_tiny()
    live.chat(max_tokens=4, extra_body={"ignore_eos": True})
    passes, seconds = stage(live, "capture")
    assert passes >= 5  # the prompt and four tokens
    assert seconds > 0
    assert stage(live, "steer")[0] == 0
    assert stage(live, "score")[0] == stage(live, "decide")[0] == 5


def test_steering_is_timed_and_its_tokens_are_counted(serve_tiny):
    live = serve_tiny(STEERED_PROMPT)
    live.chat(max_tokens=4, extra_body={"ignore_eos": True})
    passes, seconds = stage(live, "steer")
    assert passes >= 4
    assert seconds > 0
    assert live.metric("interlock_steered_tokens_total", vector="push") == 4


def test_tokens_are_counted_as_steered_for_as_long_as_the_rule_says(serve):
    live = serve(HOLDING, Script(list("abcdefgh"), scores(), scores(harm={3: 0.9})))
    live.chat(stream=False)
    assert live.metric("interlock_steered_choices_total", vector="calm") == 1
    assert live.metric("interlock_steered_tokens_total", vector="calm") == 2


def test_how_long_tokens_are_held_is_told_of_streams(serve):
    live = serve(HOLDING, Script(list("abcdefgh"), scores(), scores(), step_s=0.02))
    live.chat()
    assert live.metric("interlock_stream_holdback_seconds_count") == 0
    list(live.chat(stream=True))
    releases = live.metric("interlock_stream_holdback_seconds_count")
    assert 6 <= releases <= 8  # one by one, and at the end those that were held
    assert live.metric("interlock_stream_holdback_seconds_sum") / releases >= 0.02


def test_a_choice_without_a_score_for_some_token_is_counted_once(serve):
    live = serve(HOLDING, Script(list("abcd"), scores(), {"harm": [0.1], "deception": [0.1] * 4}))
    assert live.http.post("/v1/chat/completions", json=body_of(live)).status_code == 503
    assert live.metric("interlock_requests_uncovered_total", model="scripted") == 1
    whole = serve(HOLDING, Script(list("abcd"), scores(), scores()))
    assert whole.http.post("/v1/chat/completions", json=body_of(whole)).status_code == 200
    assert whole.metric("interlock_requests_uncovered_total", model="scripted") == 0


def body_of(live):
    return {"model": live.model, "messages": [{"role": "user", "content": "hello"}]}


def test_monitors_in_force_are_named(serve_tiny):
    live = serve_tiny()
    found = {
        sample.labels["monitor"]: sample.labels["kind"]
        for family in live.service.metrics.registry.collect()
        if family.name == "interlock_monitor_info"
        for sample in family.samples
    }
    assert found["cosine"] == "direction"
    assert set(found) == {monitor.name for monitor in live.service.engine.monitors}


def test_no_series_is_a_clients_choice(serve):
    """Hostile names of models, users, paths, methods and headers leave no trace in names or labels, nor more series."""
    live = serve(HOLDING, Script(["a"], scores(), scores()), expose_metrics=True)
    live.chat()
    live.http.get("/nowhere")
    ask(live, "warm", 4)
    before = series(live)
    ask(live, "junk", 200)
    after = series(live)
    assert {name for name in after - before if "http_requests" not in name} == set()
    assert len(after) - len(before) <= 3
    assert not re.search("junk", "\n".join(after))
    assert len(after) < 900


def ask(live, word, times):
    with httpx.Client(base_url=live.url) as client:
        for number in range(times):
            mark = f"{word}{number}"
            body = {
                "model": mark if number % 2 else live.model,
                "messages": [{"role": "user", "content": mark}],
                "user": mark,
                "metadata": {mark: mark},
                mark: 1,
            }
            client.post("/v1/chat/completions", json=body, headers={"x-request-id": mark, f"x-{mark}": mark})
            client.request(mark.upper()[:12] if number % 3 else "GET", f"/{mark}")


def series(live):
    page = live.http.get("/metrics").text
    return {line.rsplit(" ", 1)[0] for line in page.splitlines() if not line.startswith("#")}
