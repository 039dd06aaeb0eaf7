"""Faults in a running server: what the client sees, that nothing unscored leaves, and that the decision log tells it as it was.

The rows of docs/failures.md name these tests. Faults are made in the one place where they would arise: the script that the
engine plays, the method of a running part that would raise or hang, the other end of a socket.
"""

import errno
import json
import os
import socket
import threading
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import httpx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guard.backtest import rejudge
from guard.decider import Decider
from monitors.tracker import Tracker
from server.auditing.files import Rotation
from server.auditing.verify import verify
from server.auditing.writer import AuditLog, LogSettings
from server.breaker import BreakerState
from server.engines.scripted import Script, ScriptedEngine
from server.monitor_breakers import BreakerSettings
from tests.e2e.conftest import ALLOW_ONLY, scores
from tests.waiting import until

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
GREEDY = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
NAN = float("nan")
RULE = """
apiVersion: interlock/v1
kind: Policy
metadata: {{name: p, version: "1"}}
defaults: {{on_error: {on_error}}}
rules:
  - {{id: harm, when: "max({phase}.harm) > 0.5", then: {{block: {{}}}}}}
tests:
  - {{name: t, given: {{{phase}: {{harm: "0.9"}}}}, expect: {{action: block}}}}
"""
COSINE = RULE.replace("harm", "cosine").replace("> 0.5", "> 2").replace("0.9", "3")


def rule(on_error="closed", phase="response"):
    return RULE.format(on_error=on_error, phase=phase)


def only_if_asked(policy):
    """For requests with the metadata `read: it`."""
    return policy.replace(", when:", ", match: {metadata: {read: [it]}}, when:").replace(
        "given: {", "given: {metadata: {read: it}, "
    )


def marked(index):
    return f"<{index}>"


def texts(num):
    return "".join(map(marked, range(num)))


def post(live, **body):
    return live.http.post(CHAT, json={"model": live.model, "messages": HELLO, **body})


def streamed(live, **body):
    """The text of a stream, and the finish reason or the code of the error that it ended with."""
    return read(post(live, stream=True, **body).text)


def read(stream):
    *lines, last = [line for line in stream.split("\n\n") if line and not line.startswith(":")]
    assert last.strip() == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    text, end = "", None
    for event in events:
        if "error" in event:
            return text, event["error"]["code"]
        text += event["choices"][0]["delta"].get("content") or ""
        end = event["choices"][0]["finish_reason"] or end
    return text, end


def opened(live, **body):
    """A stream that has begun, as the socket that it comes from."""
    payload = json.dumps({"model": live.model, "messages": HELLO, "stream": True, **body}).encode()
    url = httpx.URL(live.url)
    client = socket.create_connection((url.host, url.port))
    head = f"POST {CHAT} HTTP/1.0\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(payload)}\r\n\r\n"
    client.sendall(head.encode() + payload)
    return client


@pytest.fixture
def serve(serve):
    """Servers whose books are checked at the end."""
    started = []

    def start(*args, **options):
        started.append(serve(*args, **options))
        return started[-1]

    yield start
    for live in started:
        books_are_right(live)


def books_are_right(live):
    """Nothing left unscored, every record holds a score for each token, and decided again comes to the same."""
    if live.service.engine.is_alive:
        live.wait_until_free()
    assert live.metric("interlock_leaks_prevented_total") == 0
    if not live.audit_path.exists():
        return
    for record in live.records():
        num_tokens = record["usage"]["completion_tokens"]
        assert record["delivered_tokens"] <= num_tokens
        kept = [series["n"] for series in record["scores"]["response"].values()]
        assert all(n == num_tokens for n in kept) or any(f["reason"] == "missing" for f in record["errors"])
        assert rejudge(live.service.policies.current, record).same, record
    assert verify([live.audit_path]).broken is None


class Clock:
    """Real time, and what a fault adds to it."""

    def __init__(self, real):
        self._real = real
        self.ahead = 0.0

    def __call__(self):
        return self._real() + self.ahead


# --- monitors --------------------------------------------------------------------------------------------------------

FAULT_AT = 3


class FaultyEngine(ScriptedEngine):
    """From one token on its values are not what they should be."""

    fault = ""

    def _values(self, values, start, num):
        made = super()._values(values, start, num)
        if start < FAULT_AT or values is self.prompt:
            return made
        match self.fault:
            case "nan":
                return made * NAN
            case "missing":
                return None
            case "shape":
                return made[:, :1]
        return made


REASONS = {"raises": "error", "nan": "nan", "missing": "missing", "shape": "error", "late": "timeout"}


@pytest.fixture
def faulty(serve, monkeypatch):
    """A server whose monitors fail at token 3 of each reply."""

    def start(fault, on_error, **service_options):
        prompt, reply = scores(), scores()
        engine = FaultyEngine(
            lambda _: Script([marked(i) for i in range(6)], prompt, reply), ("harm", "deception")
        )
        engine.fault, engine.prompt = fault, prompt
        live = serve(rule(on_error), engine=engine, service_options=service_options)
        clock = Clock(live.service.clock)
        object.__setattr__(live.service, "clock", clock)
        push = Tracker.push

        def failing(self, values):
            if self._num_tokens == FAULT_AT and len(values) == 1:
                if engine.fault == "raises":
                    raise RuntimeError("the secret text of a prompt")
                if engine.fault == "late":
                    clock.ahead += 10  # seconds; the budget is one
            return push(self, values)

        monkeypatch.setattr(Tracker, "push", failing)
        return live

    return start


@pytest.mark.parametrize("fault", REASONS)
def test_a_monitor_that_fails_closed_ends_the_reply_and_nothing_more_leaves(faulty, fault, capsys):
    live = faulty(fault, "closed")
    reply = post(live)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "interlock_unavailable")
    assert reply.headers["x-should-retry"] == "false"
    assert streamed(live) == (texts(FAULT_AT), "content_filter")
    metric = "interlock_monitor_skipped_total"
    assert live.metric(metric, monitor="harm", reason=REASONS[fault]) == 2
    assert live.metric("interlock_failures_total", component="monitor", disposition="closed") == 2
    assert live.metric("interlock_decisions_over_budget_total") == (2 if fault == "late" else 0)
    for record in live.records():
        assert (record["action"], record["delivered_tokens"]) == ("unavailable", FAULT_AT)
        (failure,) = record["errors"]
        assert (failure["reason"], failure["token"]) == (REASONS[fault], FAULT_AT)
    assert "secret" not in capsys.readouterr().err


@pytest.mark.parametrize("fault", REASONS)
def test_a_monitor_that_fails_open_lets_the_reply_go_on_and_is_counted(faulty, fault):
    live = faulty(fault, "open")
    assert post(live).json()["choices"][0]["message"]["content"] == texts(6)
    assert streamed(live) == (texts(6), "stop")
    assert live.metric("interlock_failures_total", component="monitor", disposition="open") == 2
    assert live.metric("interlock_monitor_tokens_scored_total", monitor="harm") == 0  # not all of them
    assert [failure["on_error"] for record in live.records() for failure in record["errors"]] == ["open"] * 2


def test_a_decision_that_is_late_itself_stands_and_the_next_is_not_waited_for(serve, monkeypatch):
    """The time that deciding takes is known only when it is over."""
    live = serve(rule(), Script([marked(i) for i in range(6)], scores(), scores()))
    clock = Clock(live.service.clock)
    object.__setattr__(live.service, "clock", clock)
    decide = Decider._decide_response

    def slow(self, step):
        if step.start == FAULT_AT:
            clock.ahead += 10
        return decide(self, step)

    monkeypatch.setattr(Decider, "_decide_response", slow)
    assert streamed(live) == (texts(FAULT_AT + 1), "content_filter")
    (record,) = live.records()
    assert [(f["reason"], f["token"]) for f in record["errors"]] == [("timeout", FAULT_AT + 1)]


@pytest.mark.parametrize("on_error", ["closed", "open"])
def test_a_monitor_that_raises_in_the_forward_pass_follows_on_error(serve_tiny, on_error):
    """The real engine: the model itself is not harmed, nor are requests whose rules do not read the monitor."""
    policy = only_if_asked(COSINE.format(on_error=on_error, phase="response"))
    live = serve_tiny(policy)
    whole = post(live, max_tokens=8, temperature=0, ignore_eos=True).json()["choices"][0]["message"][
        "content"
    ]
    bank = live.service.engine._stepper._runtime.bank
    point = next(m for m in bank.monitors if m.name == "cosine").hook_points[0]

    class Broken:
        columns = bank._readers[point][0].columns

        def read(self, x, buffer):
            raise RuntimeError("a secret")

    healthy = bank._readers[point]
    bank._readers[point] = (Broken(), *healthy[1:])
    try:
        options = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
        assert post(live, **options).json()["choices"][0]["message"]["content"] == whole
        read_it = post(live, metadata={"read": "it"}, **options)
        if on_error == "closed":
            assert (read_it.status_code, read_it.json()["error"]["code"]) == (503, "interlock_unavailable")
        else:
            assert read_it.json()["choices"][0]["message"]["content"] == whole
    finally:
        bank._readers[point] = healthy
    assert live.metric("interlock_failures_total", component="monitor", disposition=on_error) == 1
    assert post(live, metadata={"read": "it"}, **options).status_code == 200


@pytest.mark.parametrize("on_error", ["closed", "open"])
@pytest.mark.parametrize("fault", ["raises", "late"])
def test_a_monitor_that_fails_in_the_middle_of_a_prompt_follows_on_error(
    serve_tiny, monkeypatch, fault, on_error
):
    """The real engine, which reads a long prompt in chunks."""
    live = serve_tiny(
        COSINE.format(on_error=on_error, phase="prompt"), prefill_chunk=16, prefix_cache_tokens=0
    )
    clock = Clock(live.service.clock)
    object.__setattr__(live.service, "clock", clock)
    push = Tracker.push

    def failing(self, values):
        if self._num_tokens >= 16 and len(values) > 1:  # the second chunk, and those after it
            if fault == "raises":
                raise RuntimeError("a secret")
            clock.ahead += 10
        return push(self, values)

    monkeypatch.setattr(Tracker, "push", failing)
    for stream in (False, True):
        reply = post(
            live, messages=[{"role": "user", "content": "a long question " * 6}], stream=stream, **GREEDY
        )
        assert reply.status_code == (503 if on_error == "closed" else 200)
    reason = {"raises": "error", "late": "timeout"}[fault]
    told = [(f["reason"], f["token"], f["on_error"]) for record in live.records() for f in record["errors"]]
    assert told == [(reason, 16, on_error)] * 2
    assert {record["delivered_tokens"] for record in live.records()} == {0 if on_error == "closed" else 12}
    books_are_right(live)


def test_wherever_and_however_a_monitor_fails_no_token_from_there_on_leaves(serve):
    """For any number of choices, streamed or not, whatever fails at whatever token."""

    class Any(ScriptedEngine):
        fault_at = 0
        bad = NAN

        def _values(self, values, start, num):
            made = super()._values(values, start, num)
            if num > 1 or start < self.fault_at:
                return made
            return None if self.bad is None else made * 0 + self.bad

    engine = Any(lambda _: Script([marked(i) for i in range(8)], scores(), scores()), ("harm",))
    lives = {on_error: serve(rule(on_error), engine=engine) for on_error in ("closed", "open")}

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        fault_at=st.integers(0, 8),
        bad=st.sampled_from([NAN, float("inf"), None]),
        n=st.integers(1, 3),
        stream=st.booleans(),
        on_error=st.sampled_from(["closed", "open"]),
    )
    def check(fault_at, bad, n, stream, on_error):
        engine.fault_at, engine.bad = fault_at, bad
        live = lives[on_error]
        live.service.breakers._breakers.clear()
        fails = on_error == "closed" and fault_at < 8
        if not stream:
            reply = post(live, n=n)
            assert reply.status_code == (503 if fails else 200)
            assert marked(min(fault_at, 7)) not in reply.text or not fails
            return
        told = [""] * n
        for chunk in live.chat(n=n, stream=True):
            for choice in chunk.choices:
                told[choice.index] += choice.delta.content or ""
        assert told == [texts(fault_at if fails else 8)] * n

    check()


# --- breakers --------------------------------------------------------------------------------------------------------


class CountingEngine(ScriptedEngine):
    num_runs = 0

    def generate(self, request):
        self.num_runs += 1
        return super().generate(request)


@pytest.fixture
def breaking(serve, monkeypatch):
    """A server whose monitor `harm` fails for as long as `playing` says so, and the clock of its breakers."""

    def start(policy):
        playing = {"harm": NAN}
        engine = CountingEngine(
            lambda _: Script(["a", "b"], scores(), {**scores(), "harm": [playing["harm"]] * 9}),
            ("harm", "deception"),
        )
        live = serve(policy, engine=engine, service_options={"breakers": BreakerSettings(3, 60, 30)})
        clock = Clock(live.service.breakers._clock)
        live.service.breakers._clock = clock
        return live, playing, clock

    return start


def test_rules_that_fail_closed_refuse_at_once_while_a_breaker_is_open_and_the_monitor_is_tried(breaking):
    live, playing, clock = breaking(rule())
    state = lambda: live.metric("interlock_monitor_breaker_state", monitor="harm")  # noqa: E731
    for _ in range(3):
        assert post(live).status_code == 503
    assert state() == BreakerState.OPEN
    runs = live.service.engine.num_runs
    for body in ({}, {"stream": True}, {"n": 3}):
        reply = post(live, **body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "interlock_unavailable")
    assert live.service.engine.num_runs == runs  # nothing ran
    assert live.metric("interlock_shed_total", reason="breaker") == 3
    until(lambda: live.service.line.running == 0)
    clock.ahead = 30
    assert post(live).status_code == 503
    until(lambda: live.service.engine.num_runs == runs + 1)  # it is tried, in vain
    until(lambda: state() == BreakerState.OPEN)
    playing["harm"], clock.ahead = 0.1, 60
    assert post(live).status_code == 503
    until(lambda: state() == BreakerState.CLOSED)
    assert post(live).status_code == 200


def test_rules_that_fail_open_are_skipped_while_a_breaker_is_open_and_counted(breaking):
    live, playing, clock = breaking(rule("open"))
    for _ in range(3):
        assert post(live).status_code == 200
    playing["harm"] = 0.9  # it works again, and would block
    assert post(live).json()["choices"][0]["finish_reason"] == "stop"  # but it is not listened to yet
    assert live.metric("interlock_monitor_skipped_total", monitor="harm", reason="shed") == 1
    assert live.metric("interlock_failures_total", component="monitor", disposition="open") == 4
    clock.ahead = 30
    assert post(live).json()["choices"][0]["finish_reason"] == "stop"  # while it is tried
    until(lambda: live.metric("interlock_monitor_breaker_state", monitor="harm") == BreakerState.CLOSED)
    assert post(live).json()["choices"][0]["finish_reason"] == "content_filter"
    assert [f["reason"] for record in live.records() for f in record["errors"]] == ["nan"] * 3 + ["shed"] * 2


def test_rules_that_do_not_read_the_monitor_go_on(breaking):
    live, _, _ = breaking(only_if_asked(rule()))
    for _ in range(3):
        assert post(live, metadata={"read": "it"}).status_code == 503
    assert post(live).status_code == 200
    assert post(live, metadata={"read": "it"}).status_code == 503
    assert live.metric("interlock_shed_total", reason="breaker") == 1


def test_texts_that_are_only_read_go_on_without_a_monitor_of_replies(breaking):
    live, _, _ = breaking(rule())
    for _ in range(3):
        assert post(live).status_code == 503
    assert post(live).status_code == 503
    assert live.http.post("/v1/moderations", json={"input": "hello"}).status_code == 200


def test_monitors_that_are_late_again_and_again_open_their_breaker(faulty):
    live = faulty("late", "closed", breakers=BreakerSettings(3, 1e6, 1e6))
    for _ in range(3):
        post(live)
    assert live.metric("interlock_monitor_breaker_state", monitor="harm") == BreakerState.OPEN
    assert post(live).status_code == 503
    assert live.metric("interlock_shed_total", reason="breaker") == 1


# --- the engine ------------------------------------------------------------------------------------------------------


class Gate:
    """Engine steps wait while it is shut."""

    def __init__(self, live, monkeypatch):
        stepper, self._open = live.service.engine._stepper, threading.Event()
        self._open.set()
        self.num_begun = 0
        step = stepper.step

        def gated(ready):
            self.num_begun += 1
            self._open.wait(120)
            return step(ready)

        monkeypatch.setattr(stepper, "step", gated)
        self.open, self.shut = self._open.set, self._open.clear

    def hold_a_step(self):
        """Shut it, and wait until a step stands before it."""
        begun = self.num_begun
        self.shut()
        until(lambda: self.num_begun > begun)


@pytest.fixture
def gated(serve_tiny, monkeypatch):
    gates = []

    def start(**options):
        live = serve_tiny(**options)
        gates.append(Gate(live, monkeypatch))
        return live, gates[-1]

    yield start
    for gate in gates:
        gate.open()


def lines_of(client):
    return client.makefile("r", encoding="utf-8", newline="\n")


def begin(live, gate, **body):
    """A stream whose first token was received, and whose next step is held."""
    client = opened(live, **{**GREEDY, "max_tokens": 80, **body})
    lines = lines_of(client)
    for line in lines:
        if '"content":"' in line and '"content":""' not in line:
            break
    gate.hold_a_step()
    return client, lines


def test_out_of_memory_fails_one_request_and_its_neighbours_get_their_tokens(serve_tiny, monkeypatch):
    live = serve_tiny()
    alone = post(live, **GREEDY).json()["choices"][0]["message"]["content"]
    forward = live.service.engine._stepper._forward
    prefill, decode = forward.prefill, forward.decode
    large = "a prompt that takes too much memory " * 2

    def short_of_memory(row, start, ids, **options):
        if len(ids) > 60:
            raise torch.OutOfMemoryError("tried to allocate")
        return prefill(row, start, ids, **options)

    monkeypatch.setattr(forward, "prefill", short_of_memory)
    monkeypatch.setattr(
        forward, "decode", lambda *args: decode(*args) if len(args[1]) == 1 else _out_of_memory()
    )
    results = {}

    def ask(name, **body):
        results[name] = post(live, **GREEDY, **body)

    big = [{"role": "user", "content": large}]
    bodies = {
        "a": {},
        "big": {"messages": big},
        "b": {},
        "bigger": {"messages": big, "stream": True},
        "c": {},
    }
    threads = [threading.Thread(target=ask, args=(name,), kwargs=body) for name, body in bodies.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("a", "b", "c"):
        assert results[name].json()["choices"][0]["message"]["content"] == alone
    for name in ("big", "bigger"):
        assert (results[name].status_code, results[name].json()["error"]["code"]) == (503, "engine_error")
    assert live.metric("interlock_failures_total", component="engine", disposition="closed") == 2
    assert post(live, **GREEDY).status_code == 200
    assert sorted(record["outcome"] for record in live.records()) == ["allowed"] * 5 + ["error"] * 2
    books_are_right(live)


def _out_of_memory():
    raise torch.OutOfMemoryError("tried to allocate")


def test_out_of_memory_in_the_middle_of_a_stream_ends_it_with_an_error_event(serve_tiny, monkeypatch):
    live = serve_tiny()
    alone = post(live, **GREEDY).json()["choices"][0]["message"]["content"]
    decode, calls = live.service.engine._stepper._forward.decode, count()

    def once_short_of_memory(*args):
        return decode(*args) if next(calls) < 5 else _out_of_memory()

    monkeypatch.setattr(live.service.engine._stepper._forward, "decode", once_short_of_memory)
    text, end = streamed(live, **GREEDY)
    assert end == "engine_error"
    assert alone.startswith(text)
    assert 0 < len(text) < len(alone)
    books_are_right(live)


def test_when_the_engine_thread_dies_all_streams_end_with_an_error_and_new_requests_are_refused_at_once(
    gated, monkeypatch
):
    live, gate = gated(max_batch=2)
    client, lines = begin(live, gate)

    def dies(ready):
        raise SystemExit  # as nothing that a request does can

    results = []
    waits = threading.Thread(target=lambda: results.extend(post(live) for _ in range(3)))
    waits.start()
    monkeypatch.setattr(live.service.engine._stepper, "step", dies)
    gate.open()
    rest = "".join(lines_until_done(lines))
    client.close()
    assert '"code":"interlock_unavailable"' in rest
    waits.join()
    assert [reply.status_code for reply in results] == [503] * 3
    until(lambda: live.http.get("/readyz").status_code == 503)
    assert live.http.get("/health").status_code == 503
    assert post(live).json()["error"]["code"] == "interlock_unavailable"
    assert live.metric("interlock_failures_total", component="engine", disposition="closed") >= 1
    until(lambda: live.service.line.running == 0)
    for record in live.records():
        assert record["outcome"] == "error"


def lines_until_done(lines):
    for line in lines:
        yield line
        if line == "data: [DONE]\n":
            return


def test_a_step_that_hangs_ends_all_streams_with_an_error_and_when_it_ends_all_goes_on(gated):
    live, gate = gated(step_timeout_s=2.0)
    whole = post(live, **GREEDY).json()["choices"][0]["message"]["content"]
    client, lines = begin(live, gate)
    others = []
    waits = threading.Thread(
        target=lambda: others.append(post(live, stream=True, **GREEDY))
    )  # for its prompt
    waits.start()
    assert '"code":"interlock_unavailable"' in "".join(lines_until_done(lines))
    client.close()
    waits.join()
    for refused in (*others, post(live, **GREEDY)):
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "interlock_unavailable")
    gate.open()
    live.wait_until_free()
    assert post(live, **GREEDY).json()["choices"][0]["message"]["content"] == whole
    books_are_right(live)


# --- clients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_client_that_leaves_frees_its_row_within_the_step_that_runs(gated, stream):
    live, gate = gated()
    if stream:
        client, _ = begin(live, gate, n=2)
    else:
        gate.shut()
        client = opened(live, stream=False, n=2, **GREEDY)
        until(lambda: gate.num_begun)
    client.shutdown(socket.SHUT_RDWR)
    client.close()
    until(lambda: live.metric("interlock_client_disconnects_total") == 1)
    until(
        lambda: (
            len(live.service.engine._running) and all(r.over for r in live.service.engine._running.values())
        )
    )
    begun = gate.num_begun
    gate.open()
    live.wait_until_free()
    assert gate.num_begun == begun  # not one more step
    records = live.records()
    assert [(record["outcome"], record["cut"]) for record in records] == [("cancelled", "client_gone")] * 2
    assert live.metric("interlock_requests_total", model="tiny", endpoint="chat", outcome="cancelled") == 2
    until(lambda: live.service.line.running == 0)
    books_are_right(live)


def test_a_client_that_reads_nothing_is_cut_off_and_holds_up_nobody(serve):
    large, small = ["word " * 4000] * 3000, [marked(i) for i in range(50)]

    def script(request):
        is_large = request.sampling.max_tokens is None
        return Script(large if is_large else small, scores(), scores(count=4000))

    live = serve(script=script, service_options={"stream_stalled_s": 2.0})
    client = opened(live)
    until(lambda: live.metric("interlock_requests_running", model="scripted") == 1)

    def others_are_served_until_it_is_given_up():
        assert streamed(live, max_tokens=50) == (texts(50), "stop")
        return live.metric("interlock_stream_stalls_total")

    until(others_are_served_until_it_is_given_up)
    live.wait_until_free()
    cut = [record for record in live.records() if record["outcome"] == "cancelled"]
    assert [(record["cut"], record["stream"]) for record in cut] == [("client_stalled", True)]
    assert cut[0]["usage"]["completion_tokens"] < 3000
    client.close()


def test_a_client_that_reads_late_gets_every_token(serve):
    """It is not given up before its buffer is full."""
    live = serve(
        script=Script([marked(i) for i in range(100)], scores(), scores()),
        service_options={"stream_stalled_s": 0.05},
    )
    client = opened(live)
    until(live.records)  # it has ended long ago
    lines = "".join(lines_until_done(lines_of(client)))
    client.close()
    assert read(lines[lines.index("data:") :])[0] == texts(100)
    assert live.metric("interlock_stream_stalls_total") == 0


# --- clock and disk --------------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_changes_no_deadline_no_order_and_no_decision(serve, tmp_path):
    """Durations go by the monotonic clock; the wall clock only dates records, exceptions and keys."""
    path, jumps = tmp_path / "jumping" / "decisions.jsonl", count()

    def now():
        back_and_forth = timedelta(days=(0, 3, -400, 40)[next(jumps) % 4])
        return datetime(2026, 11, 28, tzinfo=UTC) + back_and_forth

    log = AuditLog(path, LogSettings(rotation=Rotation(max_bytes=20_000, keep=0)), now=now)
    script = Script([marked(i) for i in range(20)], scores(), scores())
    options = {"audit": log, "request_timeout_s": 600.0}
    live = serve(ALLOW_ONLY, script, service_options=options)
    object.__setattr__(live.service, "now", now)
    for _ in range(12):
        assert streamed(live) == (texts(20), "stop")
        assert post(live).status_code == 200
    live.wait_until_free()
    until(lambda: log.queued == 0)
    report = verify([path.parent])
    assert (report.broken, report.num_records) == (None, 24)
    assert live.metric("interlock_deadlines_exceeded_total") == 0
    names = {"interlock_request_duration_seconds", "interlock_time_to_first_token_seconds"}
    for metric in live.service.metrics.registry.collect():
        if metric.name in names:
            for sample in metric.samples:
                assert 0 <= sample.value < 600
    for file in path.parent.iterdir():
        for line in file.read_text().splitlines():
            record = json.loads(line)
            assert 0 <= record["timing_ms"]["total"] < 600_000
            assert rejudge(live.service.policies.current, record).same


def test_a_disk_that_fills_in_the_middle_of_a_stream_lets_it_end_and_refuses_the_next(serve, tmp_path):
    """Nothing is lost: what was decided meanwhile is written once there is room."""
    full, hold = threading.Event(), threading.Event()
    path = tmp_path / "full" / "decisions.jsonl"

    def write(fd, data):
        if full.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(fd, data)

    log = AuditLog(path, write=write)
    script = Script([marked(i) for i in range(5)], scores(), scores(), hold=hold)
    live = serve(rule(), script, service_options={"audit": log})
    results = []
    running = threading.Thread(target=lambda: results.append(streamed(live)))
    running.start()
    until(lambda: live.service.engine.load().running)
    full.set()
    hold.set()
    running.join()
    assert results == [(texts(5), "stop")]
    until(lambda: log.refuses)
    refused = post(live)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "interlock_unavailable")
    assert live.metric("interlock_shed_total", reason="audit_unwritable") == 1
    full.clear()
    until(lambda: not log.refuses)
    assert post(live).status_code == 200
    until(lambda: log.queued == 0)
    report = verify([Path(path)])
    assert (report.broken, report.num_records) == (None, 2)


def test_whatever_fails_the_next_request_works(serve):
    """One after the other on one server."""
    bad = {"harm": [0.1, NAN] + [0.1] * 20, "deception": [0.1] * 22}
    tokens = [marked(i) for i in range(5)]
    scripts = {
        1: Script(tokens, scores(), bad),
        2: Script(tokens, scores(), scores(), fail_at=2),
        3: Script(tokens, scores(), scores(harm={2: 0.9})),
        5: Script(tokens, scores(), scores()),
    }
    live = serve(rule(), lambda request: scripts[request.sampling.max_tokens])
    live.service.breakers._settings = BreakerSettings(1000)
    for _ in range(3):
        for wanted, (text, end) in {
            1: (texts(1), "length"),
            2: (texts(2), "length"),
            3: (texts(2), "content_filter"),
            5: (texts(5), "stop"),
        }.items():
            assert streamed(live, max_tokens=wanted) == (text, end)
    until(lambda: live.service.line.running == 0)
