"""The invariants of the design, one test each, over real sockets and the stock OpenAI client where a client is involved."""

import contextlib
import json
import threading

import numpy as np
import openai
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guard.audit import recorded_scores, recorded_subject
from guard.replay import replay
from guard.types import Phase
from monitors.artifacts import ArtifactError, load_folder, save_monitor
from monitors.base import Monitor
from monitors.linear import Linear
from monitors.selfcheck import check_hooks
from monitors.types import HookPoint
from server.engines.base import FinishReason
from server.engines.scripted import Script, ScriptedEngine
from server.engines.transformers.model import prepare
from tests.e2e.conftest import scores
from tests.tiny_models import TINY
from tests.tiny_tokenizer import tiny_tokenizer
from tests.unit.server.test_detokenize import cut

POLICY = """
apiVersion: interlock/v1
kind: Policy
metadata: {{name: p, version: "1"}}
defaults: {{holdback: {holdback}, on_error: {on_error}}}
rules:
  - {{id: block, when: "{when}", then: {then}}}
tests:
  - {{name: quiet, given: {{prompt: {{harm: "0"}}}}, expect: {{action: allow}}}}
"""


def policy(when="max(response.harm) > 0.5", then="{block: {message: no}}", holdback=0, on_error="closed"):
    return POLICY.format(when=when, then=then, holdback=holdback, on_error=on_error)


def marked(index: int) -> str:
    """A text from which the token's index can be read back."""
    return f"<{index}>"


class Playlist:
    """Lets one server play a new script, and follow a new policy, for each example of a property test."""

    def __init__(self):
        self.script = Script()

    def __call__(self, _request):
        return self.script


# --- 1 -------------------------------------------------------------------------------------------------------------


def test_1_no_text_leaves_before_its_step_is_decided(serve):
    """Whatever scores and texts are played: no byte of a token at or after the blocking one is received,
    streamed or not, for one to four choices, with any holdback."""
    playlist = Playlist()
    lives = {holdback: serve(policy(holdback=holdback), playlist) for holdback in (0, 1, 3)}

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        series=st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.51, 0.9]), min_size=1, max_size=12),
        holdback=st.sampled_from([0, 1, 3]),
        n=st.integers(1, 4),
        stream=st.booleans(),
    )
    def check(series, holdback, n, stream):
        live = lives[holdback]
        blocked_at = next((index for index, score in enumerate(series) if score > 0.5), None)
        playlist.script = Script(
            [marked(i) for i in range(len(series))], scores(), {**scores(), "harm": series}
        )
        texts, reasons = [""] * n, [None] * n
        if stream:
            for chunk in live.chat(n=n, stream=True):
                for choice in chunk.choices:
                    texts[choice.index] += choice.delta.content or ""
                    reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        else:
            for choice in live.chat(n=n).choices:
                texts[choice.index], reasons[choice.index] = (
                    choice.message.content or "",
                    choice.finish_reason,
                )
        for text, reason in zip(texts, reasons, strict=True):
            if blocked_at is None:
                assert text == "".join(map(marked, range(len(series))))
                assert reason == "stop"
            else:
                allowed = max(0, blocked_at - holdback) if stream else 0
                assert text == "".join(map(marked, range(allowed)))
                assert reason == "content_filter"

    check()
    for live in lives.values():
        assert live.metric("interlock_leaks_prevented_total") == 0


# --- 2 -------------------------------------------------------------------------------------------------------------


def test_2_the_same_scores_give_the_same_decisions(serve):
    """Every record of the decision log, replayed through the policy, comes to what it says."""
    playlist = Playlist()
    live = serve(policy("count(response.harm > 0.5, window=4) >= 2 or max(prompt.harm) > 0.9"), playlist)
    generator = np.random.default_rng(0)
    for _ in range(20):
        playlist.script = Script(
            [marked(i) for i in range(15)],
            {**scores(), "harm": generator.uniform(0, 0.92, 300).tolist()},
            {**scores(), "harm": generator.uniform(0, 0.7, 300).tolist()},
        )
        with contextlib.suppress(openai.BadRequestError):  # the prompt was blocked
            live.chat()
    records = live.records()
    assert len(records) == 20
    assert {record["action"] for record in records} == {"allow", "block"}
    for record in records:
        outcome = replay(
            live.service.policies.current,
            recorded_subject(record),
            recorded_scores(record, Phase.PROMPT),
            recorded_scores(record, Phase.RESPONSE),
            live.service.now(),
        )
        assert outcome.action.name.lower() == record["action"]
        assert (outcome.phase, outcome.token) == (record["phase"], record["token"])


# --- 3 -------------------------------------------------------------------------------------------------------------

NAN = float("nan")


@pytest.mark.parametrize("bad", [NAN, float("inf"), None], ids=["nan", "infinite", "missing"])
@pytest.mark.parametrize("phase", ["prompt", "response"])
def test_3_a_bad_score_follows_on_error(serve, phase, bad):
    """Closed: 503, or a stream that ends with content_filter and shows nothing from the bad token on. Open: allowed, and counted."""
    series = {**scores(), "harm": [0.1] * 2 + ([] if bad is None else [bad] * 2000)}
    script = Script(
        [marked(i) for i in range(5)],
        prompt_scores=series if phase == "prompt" else scores(),
        response_scores=series if phase == "response" else scores(),
    )
    when = f"max({phase}.harm) > 0.5"
    closed = serve(policy(when), script)
    with pytest.raises(openai.InternalServerError) as caught:
        closed.chat()
    assert caught.value.code == "interlock_unavailable"
    assert caught.value.response.headers["x-should-retry"] == "false"
    if phase == "response":
        chunks = list(closed.chat(stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == marked(0) + marked(1)
        assert chunks[-1].choices[0].finish_reason == "content_filter"
    assert closed.metric("interlock_failures_total", component="monitor", disposition="closed") >= 1

    opened = serve(policy(when, on_error="open"), script)
    assert opened.chat().choices[0].message.content == "".join(map(marked, range(5)))
    assert opened.metric("interlock_failures_total", component="monitor", disposition="open") == 1
    (failure,) = opened.records()[0]["errors"]
    assert (failure["rule"], failure["on_error"]) == ("block", "open")


def test_3_a_step_without_values_follows_on_error(serve):
    """A late score is a missing one: the decision is not put off."""

    class Mute(ScriptedEngine):
        def _values(self, *_):
            return None

    live = serve(policy(), engine=Mute(lambda _: Script([marked(0)]), ("harm",)))
    with pytest.raises(openai.InternalServerError) as caught:
        live.chat()
    assert caught.value.code == "interlock_unavailable"


# --- 4 -------------------------------------------------------------------------------------------------------------


def test_4_after_block_abort_or_disconnect_the_engine_holds_nothing(serve_tiny):
    live = serve_tiny(policy("max(response.cosine) > -2 and count(response.cosine > -2) >= 3"))
    with pytest.raises(openai.BadRequestError):  # blocked on the prompt by a second server's stricter policy
        serve_tiny(policy("max(prompt.cosine) > -2")).chat()
    assert (
        live.chat(max_tokens=50, extra_body={"ignore_eos": True}).choices[0].finish_reason == "content_filter"
    )
    live.wait_until_free()

    free = serve_tiny()
    stream = free.chat(max_tokens=100, stream=True, n=3, extra_body={"ignore_eos": True})
    for _, chunk in zip(range(6), stream, strict=False):
        assert chunk.choices
    stream.close()  # the client hangs up
    free.wait_until_free()
    assert free.metric("interlock_client_disconnects_total") >= 1
    assert all(record["outcome"] in {"cancelled", "allowed"} for record in free.records())

    hung_up = threading.Thread(target=_post_and_hang_up, args=(free,))
    hung_up.start()
    hung_up.join()
    free.wait_until_free()
    assert free.chat(max_tokens=3, extra_body={"ignore_eos": True}).usage.completion_tokens == 3


def _post_and_hang_up(live):
    """A non-streamed request whose client leaves while it runs."""
    body = {
        "model": live.model,
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 100,
        "ignore_eos": True,
    }
    try:
        live.http.post("/v1/chat/completions", json=body, timeout=0.03)
    except Exception:  # noqa: BLE001  # the time-out is the point
        return


# --- 5 -------------------------------------------------------------------------------------------------------------


def test_5_with_an_allow_only_policy_greedy_tokens_equal_the_bare_models(serve_tiny, tiny):
    live = serve_tiny()
    for prompt in ([1, 9, 30], list(range(6, 40)), [7] * 11):
        with torch.inference_mode():
            ids = torch.tensor([prompt])
            bare = tiny.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=16,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        text = live.client.completions.create(
            model=live.model, prompt=prompt, max_tokens=16, temperature=0, extra_body={"ignore_eos": True}
        )
        assert text.choices[0].text == tiny.tokenizer.decode(bare[0, len(prompt) :], skip_special_tokens=True)


# --- 6 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
def test_6_what_a_hook_point_reads_equals_output_hidden_states(name):
    loaded = prepare(TINY[name](), tiny_tokenizer(), model_id=name)
    check = check_hooks(loaded.model, loaded.blocks, torch.tensor([[1, 9, 30, 41, 7]]))
    assert check.num_layers == len(loaded.blocks.layers)


# --- 7 -------------------------------------------------------------------------------------------------------------


def test_7_a_wrong_hash_shape_model_or_hook_point_is_never_ready(tiny, tmp_path):
    """(That the server then leaves with 2 is tested with the command line.)"""
    d, num_layers = tiny.blocks.d_model, len(tiny.blocks.layers)
    folder = tmp_path / "monitors" / "harm"
    monitor = Monitor("harm", Linear((HookPoint(1),), torch.randn(1, d), torch.zeros(1)))
    save_monitor(monitor, folder, fingerprint=tiny.fingerprint)

    def load(fingerprint=tiny.fingerprint, width=d, layers=num_layers):
        return load_folder(folder.parent, fingerprint=fingerprint, d_model=width, num_layers=layers)

    assert [found.name for found in load().monitors] == ["harm"]
    for wrong in ({"fingerprint": "sha256:" + "0" * 64}, {"width": d * 2}, {"layers": 1}):
        with pytest.raises(ArtifactError):
            load(**wrong)
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ArtifactError):
        load()


# --- 8 -------------------------------------------------------------------------------------------------------------


def test_8_scores_are_the_same_alone_in_a_batch_chunked_and_after_a_prefix_hit(serve_tiny):
    watch_all = policy(
        "max(prompt.cosine) > 2 or max(prompt.across) > 1e9 or max(prompt.layer2) > 0.9999999 "
        "or max(response.cosine) > 2 or max(response.across) > 1e9 or max(response.layer2) > 0.9999999"
    )
    prompt = "a long question, asked by somebody who has all the time. " * 2
    options = {"max_tokens": 8, "temperature": 0, "extra_body": {"ignore_eos": True}}

    def scores_of(live, *, with_others=False):
        threads = []
        if with_others:
            threads = [
                threading.Thread(target=live.chat, args=("other " * k,), kwargs=options) for k in (1, 5, 9)
            ]
            for thread in threads:
                thread.start()
        live.chat(prompt, **options)
        for thread in threads:
            thread.join()
        records = [r for r in live.records() if r["usage"]["prompt_tokens"] > 100]
        return [
            recorded_scores(records[-1], phase)[name]
            for phase in Phase
            for name in ("cosine", "across", "layer2")
        ]

    alone = serve_tiny(watch_all, prefix_cache_tokens=0)
    want = scores_of(alone)
    cached = serve_tiny(watch_all, prefix_cache_tokens=4096)
    scores_of(cached)
    for got in (
        scores_of(alone, with_others=True),
        scores_of(serve_tiny(watch_all, prefix_cache_tokens=0, prefill_chunk=5)),
        scores_of(cached),
    ):
        for series, expected in zip(got, want, strict=True):
            np.testing.assert_allclose(series, expected, rtol=1e-5, atol=1e-5)
    assert cached.service.engine._stepper.prefix_cache.hits > 0


# --- 9 -------------------------------------------------------------------------------------------------------------


def test_9_streamed_text_concatenated_equals_the_reply(serve):
    playlist = Playlist()
    live = serve(script=playlist)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        tokens=st.lists(st.text(alphabet="ab\u00e9\n\U0001f600 ", max_size=4), max_size=12),
        stop=st.lists(st.text(alphabet="ab\u00e9\n ", min_size=1, max_size=3), max_size=3),
        max_tokens=st.integers(1, 12),
    )
    def check(tokens, stop, max_tokens):
        playlist.script = Script(tokens, scores(), scores())
        options = {"max_tokens": max_tokens, **({"stop": stop} if stop else {})}
        whole = live.chat(**options).choices[0]
        text, reason = "", None
        for chunk in live.chat(stream=True, **options):
            text += chunk.choices[0].delta.content or ""
            reason = chunk.choices[0].finish_reason or reason
        assert (text, reason) == (whole.message.content, whole.finish_reason)
        assert text == cut(tokens[:max_tokens], stop)

    check()


# --- 10 ------------------------------------------------------------------------------------------------------------


def test_10_a_steered_request_changes_no_other_request_in_its_batch(serve_tiny):
    steer_some = policy("max(prompt.cosine) > -2", "{steer: {vector: push, strength: 4.0}}").replace(
        "id: block,", "id: block, match: {metadata: {steer: [please]}},"
    )
    live = serve_tiny(steer_some, prefix_cache_tokens=0)
    options = {"max_tokens": 20, "temperature": 0, "extra_body": {"ignore_eos": True}}
    texts = ["hello there", "what is this, I ask you", "x"]
    alone = [live.chat(text, **options).choices[0].message.content for text in texts]
    got: dict[int, str] = {}

    def ask(index, **more):
        reply = live.chat(texts[index], **options, **more)
        got[index] = reply.choices[0].message.content
        if more:
            assert reply.model_extra["interlock"]["action"] == "steer"

    threads = [threading.Thread(target=ask, args=(0,)), threading.Thread(target=ask, args=(2,))]
    threads.append(threading.Thread(target=ask, args=(1,), kwargs={"metadata": {"steer": "please"}}))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (got[0], got[2]) == (alone[0], alone[2])
    assert got[1] != alone[1]


# --- 11 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    "script",
    [
        Script([marked(0)], scores(), scores()),
        Script([], scores(), scores()),
        Script([marked(0)], scores(), scores(), finish=FinishReason.LENGTH),
        Script([marked(i) for i in range(4)], scores(), scores(harm={2: 0.9})),
        Script([marked(i) for i in range(4)], scores(), scores(harm={2: NAN})),
        Script([marked(i) for i in range(4)], scores(), scores(), fail_at=2),
        Script([marked(i) for i in range(4)], scores(), scores(), fail_at=0),
    ],
    ids=["stop", "empty", "length", "blocked", "nan", "failed", "failed-at-once"],
)
def test_11_every_stream_ends_with_a_finish_reason_or_an_error_event_and_done(serve, script, n):
    live = serve(policy(), script)
    body = {"model": live.model, "stream": True, "n": n, "messages": [{"role": "user", "content": "x"}]}
    lines = [line for line in live.http.post("/v1/chat/completions", json=body).text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    if any("error" in event for event in events):
        assert "error" in events[-1]
        assert script.fail_at is not None
    else:
        finished = [c["index"] for event in events for c in event["choices"] if c["finish_reason"]]
        assert sorted(finished) == list(range(n))


# --- 12 ------------------------------------------------------------------------------------------------------------


def test_12_a_reload_never_drops_a_request_or_a_rule_silently(serve):
    """In flight: the old policy. Next request: the new one. A policy that is wrong changes nothing, and says so."""
    words = [marked(i) for i in range(30)]
    live = serve(policy(), Script(words, scores(), scores(harm={20: 0.7}), step_s=0.02))
    path = live.service.policies._sources.policy
    before = live.service.policies.current
    received: list[str] = []
    stream = live.chat(stream=True)
    received.append(next(stream).choices[0].delta.content or "")

    path.write_text(policy("max(response.harm) > 0.8"))
    after = live.reload()
    assert after.digest != before.digest
    reasons = []
    for chunk in stream:
        received.append(chunk.choices[0].delta.content or "")
        reasons.append(chunk.choices[0].finish_reason)
    assert "".join(received) == "".join(words[:20])
    assert reasons[-1] == "content_filter"  # by the old policy
    assert live.chat().choices[0].finish_reason == "stop"  # by the new one

    path.write_text("rules: [")
    with pytest.raises(Exception, match=r"error\["):
        live.reload()
    path.write_text(policy().replace("action: allow", "action: block"))
    with pytest.raises(ValueError, match="tests of"):
        live.reload()
    assert live.service.policies.current is after
    assert live.metric("interlock_policy_last_reload_successful") == 0
    records = live.records()
    assert [record["policy"]["digest"] for record in records] == [before.digest[:12], after.digest[:12]]


def test_the_scripted_engine_ends_with_everything_freed(serve):
    """A leak of requests shows in the engine's load."""
    held = Script([marked(i) for i in range(100)], scores(), scores(), hold=threading.Event(), hold_from=1)
    live = serve(script=held)
    stream = live.chat(stream=True)
    next(stream)
    assert isinstance(live.service.engine, ScriptedEngine)
    assert live.service.engine.load().running == 1
    stream.close()
    live.wait_until_free()
