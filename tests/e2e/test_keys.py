"""Keys, on real sockets: nobody gets in without one, each scope opens its own doors, and the tenant decides the rules."""

import asyncio
import contextlib
from datetime import UTC, datetime

import anthropic
import httpx
import openai
import orjson
import pytest
from anyio import to_thread
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from server.app import create_admin_app, create_app
from server.engines.scripted import Script
from server.keys.gate import OPEN
from server.keys.secret import hash_of
from server.keys.store import KeyStore
from tests.e2e.conftest import make_service, scores
from tests.e2e.test_every_route_is_guarded import RUNS_THE_MODEL, WatchedEngine, walk
from tests.waiting import until

PLAIN = Script(["a", "b", "c"], scores(0.9), scores(0.9))
NAMES = {"acme": "infer", "clinic": "infer", "look": "debug", "both": "infer, debug", "ops": "admin"}
POLICY = """
apiVersion: interlock/v1
kind: Policy
metadata: {name: tenants, version: "1"}
rules:
  - {id: clinic-only, match: {tenants: [clinic]}, when: max(prompt.harm) > 0.5, then: {block: {}}}
  - {id: note, when: max(prompt.harm) > 0.5, then: {annotate: {}}}
tests:
  - {name: t, given: {tenant: clinic, prompt: {harm: "0.9"}}, expect: {action: block}}
"""


HELLO = [{"role": "user", "content": "hello"}]


def key(name):
    return f"ilk_{name}_{hash_of(name).hex()}"


def key_file(names=NAMES):
    text = "apiVersion: interlock/v1\nkind: Keys\ntenants: {acme: {}, clinic: {}, staff: {}}\nkeys:\n"
    for name, scopes in names.items():
        tenant = name if name in {"acme", "clinic"} else "staff"
        digest = hash_of(key(name).split("_")[2]).hex()
        text += f"  - {{id: {name}, tenant: {tenant}, sha256: {digest}, scopes: [{scopes}]}}\n"
    return text


@pytest.fixture
def guarded_by_keys(serve, tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text(key_file())

    def start(policy=POLICY, **options):
        keys = KeyStore(path, lambda: datetime.now(UTC))
        live = serve(policy, PLAIN, service_options={"keys": keys}, **options)
        live.http.headers.clear()
        return live, path

    return start


def client_of(live, text):
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key=text, max_retries=0)


def ask(live, text, **options):
    with client_of(live, text) as client:
        return client.chat.completions.create(model=live.model, messages=HELLO, **options)


def bearer(text):
    return {"authorization": f"Bearer {text}"}


@pytest.mark.parametrize("wrong", ["unused", key("nobody"), key("acme")[:-1] + "0", "ilk_acme_", "Bearer"])
def test_the_stock_client_hears_of_a_wrong_key(guarded_by_keys, wrong):
    live, _ = guarded_by_keys()
    with pytest.raises(openai.AuthenticationError) as error:
        ask(live, wrong)
    assert error.value.code == "invalid_api_key"
    assert error.value.response.headers["www-authenticate"] == "Bearer"
    assert "x-request-id" in error.value.response.headers
    assert wrong not in error.value.response.text.replace("Authorization: Bearer", "")
    assert live.metric("interlock_requests_total", model="scripted", endpoint="chat", outcome="allowed") == 0


def test_the_stock_client_with_a_key_is_served_streamed_and_not(guarded_by_keys):
    live, _ = guarded_by_keys()
    assert ask(live, key("acme")).choices[0].message.content == "abc"
    with client_of(live, key("acme")) as client:
        streamed = client.chat.completions.create(model=live.model, messages=HELLO, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == "abc"


def test_anthropics_client_sends_its_key_its_own_way(guarded_by_keys):
    live, _ = guarded_by_keys()
    hello = {"model": "scripted", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
    with anthropic.Anthropic(base_url=live.url, api_key=key("acme"), max_retries=0) as client:
        assert client.messages.create(**hello).content[0].text == "abc"
    with (
        anthropic.Anthropic(base_url=live.url, api_key="wrong", max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError) as error,
    ):
        client.messages.create(**hello)
    assert error.value.body["error"]["type"] == "authentication_error"


def test_every_path_but_health_is_closed_without_a_key(guarded_by_keys):
    """The router is walked, so that a new route is in this test; and paths that nobody serves are closed, too."""
    live, _ = guarded_by_keys(expose_metrics=True)
    routes = set(walk(create_app(live.service, expose_metrics=True).routes))
    for method, path in sorted(
        routes | {("GET", "/"), ("GET", "/-/policy"), ("GET", "/docs"), ("PUT", "/v1")}
    ):
        reply = live.http.request(method, path.replace("{model_id:path}", "scripted"))
        assert reply.status_code == (200 if path in OPEN else 401), (method, path)
    assert {path for _, path in routes} & OPEN == OPEN


def test_odd_headers_are_no_key(guarded_by_keys):
    live, _ = guarded_by_keys()
    good = f"Bearer {key('acme')}".encode()
    for headers in (
        [(b"authorization", good), (b"authorization", good)],
        [(b"authorization", b"Basic " + good)],
        [(b"authorization", key("acme").encode())],
        [(b"authorization", b"\xff\xfe")],
        [(b"authorization", b"")],
        [(b"authorization", good + b"\x80")],
        [(b"authorization", b"Bearer nonsense"), (b"x-api-key", key("acme").encode())],
        [(b"x-api-key", good)],
        [(b"cookie", good)],
    ):
        assert live.http.get("/v1/models", headers=headers).status_code == 401, headers
    assert live.http.get(f"/v1/models?api_key={key('acme')}").status_code == 401
    assert live.http.get("/v1/models", headers={"authorization": f"bearer {key('acme')}"}).status_code == 200


def test_a_body_is_not_read_before_the_key(guarded_by_keys):
    live, _ = guarded_by_keys()
    reply = live.http.post("/v1/chat/completions", content=b"{")
    assert reply.status_code == 401


def test_each_scope_opens_its_own_doors(guarded_by_keys, tmp_path):
    live, _ = guarded_by_keys(expose_metrics=True)
    doors = {"/v1/models": {"acme", "clinic", "both"}, "/metrics": {"look", "both"}}
    for path, allowed in doors.items():
        for name in NAMES:
            reply = live.http.get(path, headers=bearer(key(name)))
            assert reply.status_code == (200 if name in allowed else 403), (path, name)
    with pytest.raises(openai.PermissionDeniedError) as error:
        ask(live, key("ops"))
    assert error.value.code == "insufficient_scope"
    assert live.metric("interlock_auth_failures_total", reason="scope") > 0


def test_the_admin_port_wants_admin_and_metrics_debug(guarded_by_keys):
    live, _ = guarded_by_keys()
    transport = httpx.ASGITransport(create_admin_app(live.service))

    async def ask_all():
        async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
            found = {}
            for path in ("/health", "/metrics", "/-/policy", "/-/audit", "/version"):
                for name in ("", "acme", "look", "ops"):
                    reply = await client.get(path, headers=bearer(key(name)) if name else {})
                    found[path, name] = reply.status_code
            return found

    found = asyncio.run(ask_all())
    assert {status for (path, _), status in found.items() if path == "/health"} == {200}
    assert {name for (path, name), status in found.items() if path == "/metrics" and status == 200} == {
        "look"
    }
    for closed in ("/-/policy", "/-/audit", "/version"):
        assert [found[closed, name] for name in ("", "acme", "look", "ops")] == [401, 403, 403, 200]


def test_the_tenant_of_the_key_decides_which_rules_hold_and_nothing_that_is_sent(guarded_by_keys):
    live, _ = guarded_by_keys()
    pretended = {
        "extra_headers": {"x-tenant": "acme", "x-interlock-tenant": "acme", "openai-organization": "acme"},
        "extra_body": {"tenant": "acme"},
        "metadata": {"tenant": "acme"},
        "user": "acme",
    }
    assert ask(live, key("acme")).model_extra["interlock"]["action"] == "annotate"
    with pytest.raises(openai.BadRequestError) as error:
        ask(live, key("clinic"), **pretended)
    assert error.value.code == "content_filter"
    recorded = [(record["tenant"], record["key_id"], record["action"]) for record in live.records()]
    assert recorded == [("acme", "acme", "annotate"), ("clinic", "clinic", "block")]


@pytest.mark.parametrize("route", sorted(RUNS_THE_MODEL), ids=lambda route: route[1])
def test_every_route_that_runs_the_model_is_decided_by_the_tenant(tmp_path, route):
    """An endpoint that forgot who asks would decide by the rules of nobody, and record so."""
    path = tmp_path / "keys.yaml"
    path.write_text(key_file())
    keys = KeyStore(path, lambda: datetime.now(UTC))
    service = make_service(WatchedEngine(PLAIN), POLICY, tmp_path / "audit.jsonl", keys=keys)
    with TestClient(create_app(service)) as client:
        client.request(*route, json=RUNS_THE_MODEL[route], headers=bearer(key("clinic")))
    record = orjson.loads((tmp_path / "audit.jsonl").read_bytes().splitlines()[0])
    assert (record["tenant"], record["key_id"], record["action"]) == ("clinic", "clinic", "block")


def test_scores_are_for_keys_with_debug(guarded_by_keys):
    live, _ = guarded_by_keys()
    wanted = {"moderation": {"model": "scripted"}}
    with pytest.raises(openai.PermissionDeniedError):
        ask(live, key("acme"), **wanted)
    shown = ask(live, key("both"), **wanted).moderation.input.results[0].category_scores
    assert shown["harm"] == pytest.approx(0.9)
    with client_of(live, key("both")) as client:
        assert set(client.moderations.create(input="x").results[0].category_scores.model_extra) >= {"harm"}
    with client_of(live, key("acme")) as client:
        assert set(client.moderations.create(input="x").results[0].category_scores.model_extra) == {"policy"}


def test_rules_are_named_to_keys_with_debug_alone(guarded_by_keys):
    live, _ = guarded_by_keys()
    assert ask(live, key("both")).model_extra["interlock"]["rules"] == ["note"]
    assert ask(live, key("both")).model_extra["interlock"]["shadow"] == []
    with client_of(live, key("both")) as client:
        chunks = list(client.chat.completions.create(model=live.model, messages=HELLO, stream=True))
    assert chunks[-1].model_extra["interlock"]["rules"] == ["note"]
    assert "note" not in str(ask(live, key("acme")).model_dump())


def test_a_tenant_that_the_policy_names_and_no_key_has_is_warned_of(guarded_by_keys):
    misspelt = POLICY.replace("tenants: [clinic]", "tenants: [clinc, 'ac*']").replace(
        "tenant: clinic", "tenant: clinc"
    )
    live, path = guarded_by_keys(misspelt)
    with capture_logs() as logs:
        asyncio.run_coroutine_threadsafe(live.service.reload_keys(), live.loop).result(10)
    warned = [entry["where"] for entry in logs if entry["log_level"] == "warning"]
    assert warned == [["rule clinic-only: 'clinc'"]]
    path.write_text(key_file().replace("staff: {}", "staff: {}, clinc: {}"))
    with capture_logs() as logs:
        asyncio.run_coroutine_threadsafe(live.service.reload_keys(), live.loop).result(10)
    assert [entry for entry in logs if entry["log_level"] == "warning"] == []


def test_a_changed_file_is_in_force_without_a_restart_and_a_wrong_one_changes_nothing(guarded_by_keys):
    live, path = guarded_by_keys()

    def reload():
        asyncio.run_coroutine_threadsafe(live.service.try_reload_keys(), live.loop).result(10)

    path.write_text("keys: [")
    reload()
    assert ask(live, key("acme")).choices
    assert live.metric("interlock_keys_last_reload_successful") == 0
    path.unlink()
    reload()
    assert ask(live, key("acme")).choices, "a file that is gone must neither open the door nor close it"
    with pytest.raises(openai.AuthenticationError):
        ask(live, "unused")
    path.write_text(key_file({"clinic": "infer", "new": "infer"}))
    reload()
    assert ask(live, key("new")).choices
    with pytest.raises(openai.AuthenticationError):
        ask(live, key("acme"))
    assert live.metric("interlock_keys_last_reload_successful") == 1
    assert live.metric("interlock_keys_reloads_total", result="failure") == 2


def test_a_stream_that_runs_outlives_its_key(serve, tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text(key_file())
    keys = KeyStore(path, lambda: datetime.now(UTC))
    slow = Script(["w"] * 30, scores(), scores(), step_s=0.02)
    live = serve(POLICY, slow, service_options={"keys": keys})
    with client_of(live, key("acme")) as client:
        stream = iter(client.chat.completions.create(model=live.model, messages=HELLO, stream=True))
        next(stream)
        path.write_text(key_file({"clinic": "infer"}))
        asyncio.run_coroutine_threadsafe(live.service.try_reload_keys(), live.loop).result(60)
        assert list(stream)[-1].choices[0].finish_reason == "stop"
    with pytest.raises(openai.AuthenticationError):
        ask(live, key("acme"))


@pytest.mark.anyio
async def test_the_file_is_watched_as_the_policy_is(tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text(key_file({"acme": "infer"}))
    keys = KeyStore(path, lambda: datetime.now(UTC))
    tried = 0

    async def reload():
        nonlocal tried
        tried += 1
        with contextlib.suppress(Exception):
            await keys.reload()

    watching = asyncio.create_task(keys.watch(reload, 0.02))
    path.write_text("nonsense: [")
    await to_thread.run_sync(until, lambda: tried)
    await asyncio.sleep(0.3)  # it is looked at again and again
    assert (tried, keys.num_keys) == (1, 1), "what is wrong is tried once"
    path.write_text(key_file())
    await to_thread.run_sync(until, lambda: keys.num_keys == len(NAMES))
    assert tried == 2
    watching.cancel()


def test_without_keys_everything_is_open_as_before(serve):
    live = serve(POLICY, PLAIN)
    assert live.chat().choices[0].message.content == "abc"
    assert live.http.get("/v1/models").status_code == 200
    assert [record["tenant"] for record in live.records()] == ["default"]


def test_no_secret_reaches_the_decision_log_or_the_metrics(guarded_by_keys, capfd):
    live, path = guarded_by_keys(expose_metrics=True)
    ask(live, key("acme"))
    with pytest.raises(openai.AuthenticationError):
        ask(live, key("nobody"))
    shown = live.http.get("/metrics", headers=bearer(key("look"))).text
    written = shown + live.audit_path.read_text() + path.read_text() + "".join(capfd.readouterr())
    for name in ("acme", "look", "nobody"):
        assert key(name).split("_")[2] not in written
    assert "acme" not in shown, "no metric names a key or a tenant"
