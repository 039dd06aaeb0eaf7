"""What happens when more comes than can be served: the line, its bounds and its fairness, deadlines, limits of size."""

import contextlib
import random
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import httpx
import openai
import orjson
import pytest
from starlette.testclient import TestClient

from server.app import create_app
from server.engines.scripted import Script
from server.keys.secret import hash_of
from server.keys.store import KeyStore
from server.scheduling.line import Line
from server.tokenizer import ByteTokenizer
from tests.e2e.conftest import ALLOW_ONLY, make_service, scores
from tests.e2e.test_every_route_is_guarded import POLICY as BLOCKING
from tests.e2e.test_every_route_is_guarded import RUNS_THE_MODEL, WatchedEngine
from tests.e2e.test_keys import HELLO, bearer, key
from tests.waiting import until

CHAT = "/v1/chat/completions"


@pytest.fixture
def gate():
    """Replies wait until it is set."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def busy(serve, gate):
    """A server with one place, which a request holds until the gate is set."""

    def start(*, policy=ALLOW_ONLY, slots=1, max_waiting=100, timeout_s=60.0, step_s=0.0, **options):
        line = Line(slots=slots, max_waiting=max_waiting, timeout_s=timeout_s)
        tokenizer = options.pop("tokenizer", None)
        script = Script(["w"] * 10, scores(), scores(), hold=gate, step_s=step_s)
        return serve(policy, script, tokenizer=tokenizer, service_options={"line": line, **options})

    return start


def post(live, **body):
    return live.http.post(CHAT, json={"model": live.model, "messages": HELLO, **body}, timeout=60)


class Background:
    """Requests that run beside the test; when the block ends the gate is set, and all have ended."""

    def __init__(self, live, gate):
        self._live = live
        self._gate = gate
        self._pool = ThreadPoolExecutor(64)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._gate.set()
        self._pool.shutdown(wait=True)

    def post(self, num_waiting=None, **body):
        future = self._pool.submit(post, self._live, **body)
        if num_waiting is not None:
            until(lambda: self._live.service.line.waiting == num_waiting)
        return future

    def occupy(self, **body):
        future = self._pool.submit(post, self._live, **body)
        until(lambda: self._live.service.line.running)
        return future


def test_who_comes_too_many_is_refused_at_once_and_told_when_to_come_again(busy, gate):
    live = busy(max_waiting=1)
    with Background(live, gate) as background:
        first = background.occupy()
        second = background.post(num_waiting=1)
        with pytest.raises(openai.InternalServerError) as error:
            live.chat()
        assert (error.value.status_code, error.value.code) == (503, "overloaded")
        assert 1 <= int(error.value.response.headers["retry-after"]) <= 2
        assert live.metric("interlock_requests_waiting", model="scripted") == 1
        gate.set()
        assert {first.result().status_code, second.result().status_code} == {200}
    assert live.metric("interlock_shed_total", reason="queue_full") == 1
    assert live.metric("interlock_requests_total", model="scripted", endpoint="chat", outcome="shed") == 1
    assert live.metric("interlock_request_queue_seconds_count", model="scripted") == 2


def test_what_is_refused_is_not_tokenised_first(busy, gate):
    class Counting(ByteTokenizer):
        calls = 0

        def chat(self, *args, **options):
            Counting.calls += 1
            return super().chat(*args, **options)

    live = busy(max_waiting=0, tokenizer=Counting())
    with Background(live, gate) as background:
        background.occupy()
        for _ in range(5):
            assert post(live).status_code == 503
    assert Counting.calls == 1


def test_a_flood_of_one_tenant_does_not_hold_up_another(busy, gate, tmp_path):
    path = tmp_path / "keys.yaml"
    text = "apiVersion: interlock/v1\nkind: Keys\ntenants: {acme: {}, clinic: {}}\nkeys:\n"
    for name in ("acme", "clinic"):
        digest = hash_of(key(name).split("_")[2]).hex()
        text += f"  - {{id: {name}, tenant: {name}, sha256: {digest}}}\n"
    path.write_text(text)
    live = busy(keys=KeyStore(path, lambda: datetime.now(UTC)))
    order = []

    def ask(name):
        body = {"model": live.model, "messages": HELLO}
        reply = httpx.post(live.url + CHAT, json=body, headers=bearer(key(name)), timeout=60)
        assert reply.status_code == 200
        order.append(name)

    flood = [threading.Thread(target=ask, args=("acme",)) for _ in range(20)]
    for thread in flood:
        thread.start()
    until(lambda: live.service.line.waiting == 19)
    small = [threading.Thread(target=ask, args=("clinic",)) for _ in range(3)]
    for thread in small:
        thread.start()
    until(lambda: live.service.line.waiting == 22)
    gate.set()
    for thread in [*flood, *small]:
        thread.join()
    served_last = len(order) - 1 - order[::-1].index("clinic")
    assert served_last <= 12, order  # first come, first served would have it at the end


def test_nobody_waits_for_ever(busy, gate):
    live = busy(timeout_s=0.2)
    with Background(live, gate) as background:
        background.occupy()
        refused = post(live)  # while the one before it still runs
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
    assert live.metric("interlock_shed_total", reason="queue_timeout") == 1


def test_a_client_that_leaves_while_it_waits_is_forgotten(busy, gate):
    live = busy()
    with Background(live, gate) as background:
        background.occupy()
        body = orjson.dumps({"model": live.model, "messages": HELLO})
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        url = httpx.URL(live.url)
        with socket.create_connection((url.host, url.port)) as client:
            client.sendall(head.encode() + body)
            until(lambda: live.service.line.waiting == 1)
        until(lambda: live.metric("interlock_client_disconnects_total"))
        assert live.service.line.waiting == 0
        assert live.service.line.running == 1
    assert live.metric("interlock_client_disconnects_total") == 1


def test_what_is_reloaded_while_a_request_waits_decides_it(busy, gate):
    """It was not let in under a policy that is gone by the time the model reads it."""
    live = busy()
    with Background(live, gate) as background:
        before = background.occupy()
        after = background.post(num_waiting=1)
        live.service.policies._sources.policy.write_text(ALLOW_ONLY.replace('version: "1"', 'version: "2"'))
        live.reload()
        gate.set()
        versions = [f.result().headers["x-interlock-policy"].split("@")[1][0] for f in (before, after)]
    assert versions == ["1", "2"]


def test_choices_are_counted_and_a_request_is_let_in_whole(busy, gate):
    live = busy(slots=2)
    with Background(live, gate) as background:
        background.occupy(n=4)
        assert live.service.line.running == 4
        waits = background.post(num_waiting=3, n=3)
        gate.set()
        assert len(waits.result().json()["choices"]) == 3
    assert live.service.line.running == 0


@pytest.mark.parametrize("phase", ["prompt", "response", "neither"])
@pytest.mark.parametrize("route", sorted(RUNS_THE_MODEL), ids=lambda route: route[1])
def test_every_route_stands_in_line_and_gives_its_place_back(tmp_path, route, phase):
    """However it ends: blocked on its prompt, on its reply, or not."""
    spiked = {"harm": [0.9] * 500, "deception": [0.1] * 500}
    quiet = scores(count=500)
    script = Script(["w"], spiked if phase == "prompt" else quiet, spiked if phase == "response" else quiet)
    policy = BLOCKING % (("prompt",) * 2 if phase == "prompt" else ("response",) * 2)
    line = Line(slots=1, max_waiting=0)
    service = make_service(WatchedEngine(script), policy, tmp_path / "audit.jsonl", line=line)
    with TestClient(create_app(service)) as client:
        for _ in range(3):
            assert client.request(*route, json=RUNS_THE_MODEL[route]).status_code in {200, 400}
            assert (line.running, line.waiting) == (0, 0)
        line._running = 1  # somebody holds the only place
        assert client.request(*route, json=RUNS_THE_MODEL[route]).status_code == 503
        line._running = 0


def test_wrong_requests_hold_no_place(busy, gate):
    gate.set()
    live = busy()
    for body in ({"model": "nobody"}, {"messages": []}, {"max_tokens": 10**6}, {"messages": HELLO, "n": 99}):
        assert post(live, **body).status_code in {400, 404}
    assert live.service.line.running == 0
    assert post(live).status_code == 200


def test_a_request_that_takes_too_long_is_ended(busy, gate):
    live = busy(slots=10, request_timeout_s=0.4)
    with pytest.raises(openai.InternalServerError) as error:
        live.chat()
    assert (error.value.status_code, error.value.code) == (504, "deadline_exceeded")
    assert error.value.response.headers["x-should-retry"] == "false"
    live.wait_until_free()
    with pytest.raises(openai.APIError) as error:
        list(live.chat(stream=True))
    assert error.value.code == "deadline_exceeded"
    live.wait_until_free()
    assert live.metric("interlock_deadlines_exceeded_total") == 2
    assert [record["outcome"] for record in live.records()] == ["cancelled", "cancelled"]
    assert live.service.line.running == 0


def test_the_deadline_runs_while_a_request_waits(busy, gate):
    live = busy(request_timeout_s=6.0, step_s=0.5)  # five seconds in all: one's own would be enough
    with Background(live, gate) as background:
        first = background.occupy()
        second = background.post(num_waiting=1)
        assert first.result().status_code == 504
        gate.set()
        assert second.result().status_code == 504


def test_sizes_are_limited_before_the_work(busy, gate):
    gate.set()
    live = busy(max_prompt_tokens=30, max_body_bytes=2000)
    long = [{"role": "user", "content": "x" * 100}]
    refused = post(live, messages=long)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "30 tokens" in refused.json()["error"]["message"]
    assert post(live).status_code == 200
    huge = post(live, messages=[{"role": "user", "content": "x" * 3000}])
    assert (huge.status_code, huge.json()["error"]["code"]) == (413, "body_too_large")


def test_a_line_that_is_closed_for_the_drain_turns_away_who_waits(busy, gate):
    live = busy()
    with Background(live, gate) as background:
        first = background.occupy()
        second = background.post(num_waiting=1)
        live.loop.call_soon_threadsafe(live.service.line.close)
        refused = second.result()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        gate.set()
        assert first.result().status_code == 200


def test_a_storm_of_clients_that_leave_at_any_moment_leaves_nothing_behind(busy, gate):
    """Waiting, being let in, generating, streaming: wherever they are cut off, every place comes back."""
    gate.set()
    live = busy(slots=3, max_waiting=20, step_s=0.005)
    chooser = random.Random(7)  # noqa: S311  # not a secret
    tls = ssl.create_default_context()  # once: it is slow to make

    def ask(patience, stream):
        body = {"model": live.model, "messages": HELLO, "stream": stream, "n": 1 + int(patience * 100) % 3}
        with contextlib.suppress(httpx.TransportError):
            return httpx.post(live.url + CHAT, json=body, timeout=patience, verify=tls).status_code
        return None

    with ThreadPoolExecutor(24) as pool:
        asked = [
            pool.submit(ask, chooser.choice([0.02, 0.1, 0.4, 5.0]), chooser.random() < 0.5)
            for _ in range(150)
        ]
        answers = [future.result() for future in asked]
    assert {200, None} <= set(answers) <= {200, 503, None}
    until(lambda: (live.service.line.running, live.service.line.waiting) == (0, 0))
    live.wait_until_free()
    assert live.service.line._tenants == {}
    assert post(live).status_code == 200
