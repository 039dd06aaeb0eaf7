"""A server's life as an orchestrator sees it: probes from before the model is there, signals, drain, exit codes."""

import contextlib
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import orjson
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from server.app import create_admin_app
from server.cli import app as cli
from server.engines.base import EngineLoad
from server.engines.scripted import Script, ScriptedEngine
from server.readiness import Heartbeat
from tests.e2e.conftest import ALLOW_ONLY, make_service, scores
from tests.e2e.lifecycle_server import HELLO, POLICY, served
from tests.e2e.test_keys import key, key_file
from tests.waiting import until

FOREVER = 3600.0  # seconds: what a test must not wait for


def checks(reply):
    return {check["name"]: check.get("note", "") for check in reply.json()["checks"] if not check["ok"]}


def chat(live, **more):
    body = {"model": "scripted", "messages": HELLO, **more}
    return live.http.post(f"{live.api}/v1/chat/completions", json=body)


def events(stream):
    return [line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: ")]


# --- before the model is there ---------------------------------------------------------------------------------------


def test_while_the_model_loads_both_ports_answer_that_they_live_and_are_not_there_yet(tmp_path):
    with served(tmp_path, loaded=False) as live:
        for port in (live.api, live.admin):
            assert live.get("/livez", port).status_code == 200
            for probe in ("/startupz", "/readyz"):
                reply = live.get(probe, port)
                assert (reply.status_code, checks(reply)) == (503, {"model": "it is being loaded"})
            assert (live.get("/health", port).status_code, live.get("/health", port).content) == (503, b"")
        with pytest.raises(openai.InternalServerError) as early:
            live.chat()
        assert (early.value.status_code, early.value.code) == (503, "model_loading")
        assert early.value.response.headers["retry-after"] == "10"
        assert live.get("/-/policy").json()["error"]["code"] == "model_loading"
        live.load()
        live.tell("go")
        assert live.chat().choices[0].message.content == "abc"
        for port in (live.api, live.admin):
            for probe in ("/livez", "/startupz", "/readyz", "/health"):
                assert live.get(probe, port).status_code == 200


def test_a_signal_while_the_model_loads_ends_the_process_without_waiting_for_it(tmp_path):
    with served(tmp_path, loaded=False) as live:
        assert live.get("/livez").status_code == 200
        live.signal(signal.SIGTERM)
        assert live.exit_code == 0


# --- drain -----------------------------------------------------------------------------------------------------------


def test_after_sigterm_the_server_is_not_ready_and_still_serves_until_that_is_noticed(tmp_path):
    with served(tmp_path, drain_delay_s=FOREVER) as live:
        live.tell("go")
        assert "connection" not in chat(live).headers
        live.signal(signal.SIGTERM)
        until(lambda: live.get("/readyz").status_code == 503)
        for port in (live.api, live.admin):
            assert checks(live.get("/readyz", port)) == {"drain": "leaving"}
            assert live.get("/livez", port).status_code == 200
            assert live.get("/health", port).status_code == 200
        reply = chat(live)
        assert reply.json()["choices"][0]["message"]["content"] == "abc"
        assert reply.headers["connection"] == "close"  # so that a balancer's connections move elsewhere
        scraped = live.get("/metrics").text
        assert "interlock_draining 1.0" in scraped
        assert "interlock_ready 0.0" in scraped


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_while_draining_new_requests_are_refused_and_running_ones_end_as_they_would(tmp_path, number):
    """SIGINT comes from a person: no load balancer has to notice first."""
    delay_s = 0.0 if number == signal.SIGTERM else FOREVER
    with (
        ThreadPoolExecutor() as pool,  # outside: if the test fails, what it waits for ends with the server
        served(tmp_path, drain_delay_s=delay_s, drain_timeout_s=FOREVER) as live,
    ):
        whole = pool.submit(live.chat)
        stream = live.chat(stream=True)
        next(stream)
        live.until_running(2)
        live.signal(number)
        live.until_phase("refusing")
        for route, body in (("chat/completions", {"messages": HELLO}), ("completions", {"prompt": "x"})):
            refused = live.http.post(f"{live.api}/v1/{route}", json={"model": "scripted", **body})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert refused.headers["retry-after"] == "5"
        assert live.get("/-/drain").json() == {"phase": "refusing", "running": 2, "waiting": 0}
        live.tell("go")
        chunks = list(stream)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "abc"
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert whole.result(60).choices[0].message.content == "abc"
        assert live.exit_code == 0
        records = [orjson.loads(line) for line in (tmp_path / "audit.jsonl").read_bytes().splitlines()]
        assert [record["action"] for record in records] == ["allow", "allow"]


@pytest.mark.parametrize("hurried", [False, True])
def test_what_still_runs_when_its_time_is_over_ends_with_an_error_and_is_recorded(tmp_path, hurried):
    """Its time is over after `drain_timeout_s`, or at a second signal."""
    times = (
        {"drain_delay_s": FOREVER, "drain_timeout_s": FOREVER}
        if hurried
        else {"drain_delay_s": 0.0, "drain_timeout_s": 0.1}
    )
    with ThreadPoolExecutor() as pool, served(tmp_path, **times) as live:
        whole = pool.submit(chat, live)
        body = {"model": "scripted", "messages": HELLO, "stream": True}
        with live.http.stream("POST", f"{live.api}/v1/chat/completions", json=body) as stream:
            live.until_running(2)
            live.signal(signal.SIGTERM)
            if hurried:
                live.until_phase("leaving")
                live.signal(signal.SIGTERM)
            *_, error, done = events(stream)
        assert (orjson.loads(error)["error"]["code"], done) == ("draining", "[DONE]")
        refused = whole.result(60)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert live.exit_code == 0
        records = [orjson.loads(line) for line in (tmp_path / "audit.jsonl").read_bytes().splitlines()]
        assert len(records) == 2
        assert "Traceback" not in live.said


@pytest.mark.parametrize("hangs", [False, True])
def test_the_log_is_written_out_before_the_end_and_a_step_that_hangs_is_not_waited_for(tmp_path, hangs):
    """Clients hear of the end, and the exit code says whether it was a clean one. The disk takes its time."""
    with served(tmp_path, drain_delay_s=0.0, drain_timeout_s=0.1, disk_s=3.0) as live:
        if hangs:
            live.tell("hang")
        stream = live.chat(stream=True)
        next(stream)
        live.signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        assert live.exit_code == int(hangs)
        assert ("a step of the engine hangs" in live.said) == hangs
        assert len((tmp_path / "audit.jsonl").read_bytes().splitlines()) == 1


def test_a_third_signal_ends_without_anything_more(tmp_path):
    with served(tmp_path, drain_delay_s=FOREVER, step_end_s=FOREVER) as live:
        live.tell("hang")
        live.signal(signal.SIGTERM)
        live.until_phase("leaving")
        live.signal(signal.SIGTERM)
        until(lambda: "ending at once" in live.said)
        live.signal(signal.SIGTERM)
        assert live.exit_code == 128 + signal.SIGTERM


def test_drained_by_request_the_process_stays_until_it_is_told_to_end(tmp_path):
    with served(tmp_path, drain_delay_s=0.0) as live:
        assert live.get("/-/drain").json() == {"phase": "serving", "running": 0, "waiting": 0}
        begun = live.http.post(f"{live.admin}/-/drain")
        assert (begun.status_code, begun.json()["phase"] != "serving") == (200, True)
        live.until_phase("over")
        assert chat(live).json()["error"]["code"] == "draining"
        assert live.get("/readyz").status_code == 503
        assert live.get("/livez").status_code == 200  # nothing that a restart would cure
        assert live.process.is_alive()
        live.signal(signal.SIGTERM)
        assert live.exit_code == 0


def test_interlock_drain_tells_how_many_still_run_and_waits_for_them(tmp_path):
    with ThreadPoolExecutor() as pool, served(tmp_path, drain_delay_s=0.0, drain_timeout_s=FOREVER) as live:
        stream = live.chat(stream=True)
        next(stream)
        short = CliRunner().invoke(cli, ["drain", "--url", live.admin, "--wait", "0.1s"])
        assert short.exit_code == 0, short.output
        assert "1 running, 0 waiting" in short.output
        assert "goes on draining by itself" in short.output
        waiting = pool.submit(CliRunner().invoke, cli, ["drain", "--url", live.admin])
        live.until_phase("refusing")
        live.tell("go")
        list(stream)
        done = waiting.result(60)
        assert (done.exit_code, done.output.splitlines()[-1]) == (0, "Drained: nothing runs any more.")


def test_interlock_drain_says_what_to_do_where_it_can_t(tmp_path):
    nobody = CliRunner().invoke(cli, ["drain", "--url", "http://127.0.0.1:9"])
    assert nobody.exit_code == 1
    assert "Is the server running?" in nobody.output
    unit = CliRunner().invoke(cli, ["drain", "--wait", "10"])
    assert (unit.exit_code, "write a duration with its unit" in unit.output) == (2, True)


# --- reload by signal ------------------------------------------------------------------------------------------------


def test_sighup_puts_the_policy_on_disk_in_force_and_a_wrong_one_changes_nothing(tmp_path):
    with served(tmp_path, reload_poll_s=0.0) as live:
        live.tell("go")
        path = tmp_path / "audit.yaml"

        def in_force():
            return live.get("/-/policy").json()

        assert in_force()["policy"].startswith("p@1#")
        path.write_text(POLICY % 2)
        live.signal(signal.SIGHUP)
        until(lambda: in_force()["policy"].startswith("p@2#"))
        assert chat(live).headers["x-interlock-policy"].startswith("p@2#")
        path.write_text("rules: [")
        live.signal(signal.SIGHUP)
        until(lambda: in_force()["last_error"])
        assert in_force()["policy"].startswith("p@2#")
        ready = live.get("/readyz")  # the last good one is as good as it was
        assert ready.status_code == 200
        assert "last good policy" in orjson.dumps(ready.json()).decode()
        assert chat(live).headers["x-interlock-policy"].startswith("p@2#")
        assert 'interlock_policy_reloads_total{result="failure"} 1.0' in live.get("/metrics").text


# --- what is ready, and what lives -----------------------------------------------------------------------------------


class Engine(ScriptedEngine):
    """As alive and as silent as a test says."""

    alive, silent_s = True, 0.0

    @property
    def is_alive(self):
        return self.alive

    def load(self):
        return EngineLoad(1, 0, 10, 100, self.silent_s)


@pytest.fixture
def probed(tmp_path):
    """The admin port in this process, over a clock that a test turns."""
    engine = Engine(lambda _: Script(["a"], scores(), scores()), ("harm", "deception"))
    service = make_service(engine, ALLOW_ONLY, tmp_path / "audit.jsonl")
    clock = [1000.0]
    object.__setattr__(service, "clock", lambda: clock[0])
    with TestClient(create_admin_app(service)) as client:
        yield client, service, clock
    service.audit.close()


def status(client, *paths):
    return [client.get(path).status_code for path in paths]


def test_an_engine_that_dies_is_not_ready_at_once_and_not_alive_after_a_minute(probed):
    client, service, clock = probed
    assert status(client, "/readyz", "/livez", "/health") == [200, 200, 200]
    service.engine.alive = False
    assert checks(client.get("/readyz")) == {"engine": "the engine has ended"}
    assert status(client, "/readyz", "/livez", "/health") == [503, 200, 503]
    clock[0] += 59
    assert status(client, "/readyz", "/livez") == [503, 200]
    clock[0] += 1
    assert status(client, "/readyz", "/livez") == [503, 503]
    service.drain.finish()  # it was ended on purpose
    assert status(client, "/readyz", "/livez") == [503, 200]


@pytest.mark.parametrize(
    ("silent_s", "expected"), [(29.9, [200, 200, 200]), (30.0, [503, 200, 503]), (60.0, [503, 503, 503])]
)
def test_an_engine_that_owes_a_step_is_not_ready_after_30_s_and_not_alive_after_60(
    probed, silent_s, expected
):
    client, service, _ = probed
    service.engine.silent_s = silent_s
    assert status(client, "/readyz", "/livez", "/health") == expected


def test_a_monitor_that_fails_its_canary_and_a_log_that_can_t_be_written_are_not_ready_but_alive(probed):
    from server.canary import CanaryWatch  # noqa: PLC0415

    client, service, _ = probed
    canary = CanaryWatch(service.engine)
    object.__setattr__(service, "canary", canary)
    assert status(client, "/readyz") == [200]
    canary.is_pending = True
    assert checks(client.get("/readyz")) == {"monitors": "canaries have not passed yet"}
    canary.is_pending, canary.failed = False, ("harm",)
    service.audit._error = "No space left on device"
    reply = client.get("/readyz")
    assert checks(reply) == {
        "monitors": "1 monitors fail their canaries",
        "decision_log": "No space left on device",
    }
    assert "harm" not in reply.text  # it answers without a key
    assert status(client, "/livez") == [200]


def test_an_engine_that_hangs_refuses_new_requests_and_is_ready_again_when_it_goes_on(serve, monkeypatch):
    """The real engine, with a step that hangs."""
    from monitors.artifacts import MonitorSet  # noqa: PLC0415
    from server.engines.transformers.engine import EngineSettings, TransformersEngine  # noqa: PLC0415
    from server.engines.transformers.model import prepare  # noqa: PLC0415
    from server.tokenizer import ModelTokenizer  # noqa: PLC0415
    from tests.tiny_models import TINY  # noqa: PLC0415
    from tests.tiny_tokenizer import tiny_tokenizer  # noqa: PLC0415

    tiny = prepare(TINY["llama"](), tiny_tokenizer(), model_id="tiny")
    engine = TransformersEngine(tiny, MonitorSet(), EngineSettings(max_batch=2))
    policy = "apiVersion: interlock/v1\nkind: Policy\nmetadata: {name: p, version: '1'}\n"
    options = {"heartbeat": Heartbeat(stalled_s=0.2)}
    live = serve(
        policy, engine=engine, tokenizer=ModelTokenizer(tiny.tokenizer), vectors=(), service_options=options
    )
    gate, step = threading.Event(), engine._stepper.step

    def gated(ready):
        gate.wait(120)
        return step(ready)

    monkeypatch.setattr(engine._stepper, "step", gated)
    with ThreadPoolExecutor() as pool, contextlib.ExitStack() as stack:
        stack.callback(gate.set)
        held = pool.submit(live.chat, "hello", max_tokens=3)
        until(lambda: live.http.get("/readyz").status_code == 503)
        assert "no step for" in checks(live.http.get("/readyz"))["engine"]
        until(lambda: live.http.get("/livez").status_code == 503)
        refused = live.http.post("/v1/chat/completions", json={"model": "tiny", "messages": HELLO})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "interlock_unavailable")
        assert live.metric("interlock_shed_total", reason="engine") == 1
        gate.set()
        assert held.result(60).choices
    until(lambda: live.http.get("/readyz").status_code == 200)
    assert live.http.get("/livez").status_code == 200


# --- what an operator sees -------------------------------------------------------------------------------------------


def test_debug_shows_what_the_server_holds_and_nothing_that_anybody_wrote(tmp_path):
    secret = "heliotrope"
    with served(tmp_path, limits_redis="redis://:pass-phrase@127.0.0.1:1") as live:
        stream = live.client.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": secret}], stream=True
        )
        next(stream)
        live.until_running(1)
        state, stacks = live.get("/debug"), live.get("/debug/stacks")
        assert state.json()["line"] == {
            "running": 1,
            "waiting": 0,
            "tenants": {"default": {"running": 1, "waiting": 0}},
        }
        assert state.json()["engine"]["running"] == 1
        assert state.json()["monitors"] == ["harm", "deception"]
        assert "thread MainThread" in stacks.text
        assert "server/serve.py" in stacks.text
        assert "in Drain.run" in stacks.text  # a task that waits, with all that it awaits
        for text in (state.text, stacks.text):
            assert secret not in text
            assert "pass-phrase" not in text
        assert state.json()["settings"]["limits_redis"] == "**********"
        assert live.get("/debug", live.api).status_code == 404
        live.signal(signal.SIGUSR1)
        until(lambda: "most recent call first" in live.said)
        assert secret not in live.said


@pytest.mark.parametrize("port", ["api", "admin"])
def test_with_keys_each_scope_sees_its_own(tmp_path, port):
    keys = tmp_path / "keys.yaml"
    keys.write_text(key_file())
    with served(tmp_path, key=key("ops"), keys=keys) as live:
        seen = {
            (name, path): live.http.get(
                f"{getattr(live, port)}{path}",
                headers={"authorization": f"Bearer {key(name)}"} if name else {"authorization": ""},
            ).status_code
            for name in ("", "acme", "look", "ops")
            for path in ("/livez", "/readyz", "/startupz", "/metrics", "/debug", "/debug/stacks", "/-/drain")
        }
    probes = {(name, path): 200 for name, path in seen if path in {"/livez", "/readyz", "/startupz"}}
    own = {"/debug", "/debug/stacks", "/-/drain"}
    closed = {(name, path): 403 if name else 401 for name, path in seen if (name, path) not in probes}
    if port == "admin":
        opened = {("ops", path): 200 for path in own} | {("look", "/metrics"): 200}
    else:
        opened = {("acme", path): 404 for path in own} | {("look", "/metrics"): 404}
    assert seen == {**probes, **closed, **opened}


def test_interlock_drain_needs_a_key_of_an_admin_where_there_are_keys(tmp_path):
    keys, mine = tmp_path / "keys.yaml", tmp_path / "key"
    keys.write_text(key_file())
    with served(tmp_path, key=key("ops"), keys=keys, drain_delay_s=0.0) as live:
        for name in ("", "acme"):
            mine.write_text(key(name) if name else "")
            refused = CliRunner().invoke(
                cli, ["drain", "--url", live.admin, *(["--key-file", str(mine)] if name else [])]
            )
            assert (refused.exit_code, "--key-file" in refused.output) == (1, True)
        assert live.get("/-/drain").json()["phase"] == "serving"
        mine.write_text(key("ops") + "\n")
        done = CliRunner().invoke(cli, ["drain", "--url", live.admin, "--key-file", str(mine)])
        assert done.exit_code == 0, done.output
        assert key("ops") not in done.output


def test_an_idle_connection_does_not_hold_up_the_end(tmp_path):
    with served(tmp_path, drain_delay_s=0.0) as live, httpx.Client(timeout=60) as idle:
        assert idle.get(f"{live.api}/version").status_code == 200
        live.signal(signal.SIGTERM)
        assert live.exit_code == 0
