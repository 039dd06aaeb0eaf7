"""One guarded pipeline under every route: the router is walked, and whatever runs the model must do so through `guarded`.

A new route fails here until it is in one of the two tables below; and a route that reaches the engine by another way
fails whatever table it is in.
"""

import inspect
from collections.abc import Iterator

import orjson
import pytest
from fastapi import APIRouter, FastAPI, Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.routing import Route
from starlette.testclient import TestClient

from server.api.routing import _StrictRoute
from server.app import create_admin_app, create_app
from server.engines.base import EngineRequest, SamplingParams
from server.engines.scripted import Script, ScriptedEngine
from server.pipeline import guarded
from tests.e2e.conftest import make_service, scores

WORD = "zebra"  # what the model says
MODEL = {"model": "scripted"}
HELLO = [{"role": "user", "content": "hello"}]

# route -> a body that makes it run the model
RUNS_THE_MODEL = {
    ("POST", "/v1/chat/completions"): {**MODEL, "messages": HELLO},
    ("POST", "/v1/completions"): {**MODEL, "prompt": "hello"},
    ("POST", "/v1/responses"): {**MODEL, "input": "hello"},
    ("POST", "/v1/messages"): {**MODEL, "messages": HELLO, "max_tokens": 100},
    ("POST", "/v1/moderations"): {"input": "hello"},
    ("POST", "/beta/litellm_basic_guardrail_api"): {"input_type": "request", "texts": ["hello"]},
}

# route -> a body that it accepts, None where it takes none
NEVER_RUNS_THE_MODEL = {
    ("POST", "/v1/messages/count_tokens"): {**MODEL, "messages": HELLO},
    ("POST", "/tokenize"): {"prompt": "hello"},
    ("POST", "/detokenize"): {"tokens": [104]},
    ("GET", "/tokenizer_info"): None,
    ("GET", "/v1/models"): None,
    ("GET", "/v1/models/{model_id:path}"): None,
    ("GET", "/health"): None,
    ("HEAD", "/health"): None,
    ("GET", "/ping"): None,
    ("POST", "/ping"): None,
    ("GET", "/livez"): None,
    ("GET", "/readyz"): None,
    ("GET", "/startupz"): None,
    ("GET", "/version"): None,
    ("GET", "/load"): None,
    ("GET", "/metrics"): None,
    ("GET", "/-/policy"): None,
    ("POST", "/-/reload"): None,
    ("GET", "/-/audit"): None,
    ("GET", "/-/openapi.json"): None,
    ("GET", "/-/drain"): None,
    ("POST", "/-/drain"): None,
    ("GET", "/debug"): None,
    ("GET", "/debug/stacks"): None,
}

POLICY = """
apiVersion: interlock/v1
kind: Policy
metadata: {name: p, version: "1"}
rules:
  - {id: block, when: max(%s.harm) > 0.5, then: {block: {message: "Withheld."}}}
tests:
  - {name: t, given: {%s: {harm: "0.9"}}, expect: {action: block}}
"""


class WatchedEngine(ScriptedEngine):
    """Knows of each run whether the pipeline drives it."""

    def __init__(self, script):
        super().__init__(lambda _: script, ("harm", "deception"))
        self.runs = []

    async def generate(self, request):
        self.runs.append(_is_driven_by_the_pipeline())
        async for step in super().generate(request):
            yield step


def _is_driven_by_the_pipeline():
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is guarded.__code__:
            return True
        frame = frame.f_back
    return False


def walk(routes) -> Iterator[tuple[str, str]]:
    for route in routes:
        if hasattr(route, "original_router"):  # what FastAPI makes of an included router
            yield from walk(route.original_router.routes)
        elif isinstance(route, Route) or hasattr(route, "methods"):
            yield from ((method, route.path) for method in sorted(route.methods))
        else:
            pytest.fail(f"this test can't walk a {type(route).__name__}; teach it to")


def service_with(tmp_path, phase="response"):
    harmful = {"harm": [0.9] * 500, "deception": [0.1] * 500}
    quiet = scores(count=500)
    script = Script(
        [WORD] * 5, harmful if phase == "prompt" else quiet, harmful if phase == "response" else quiet
    )
    return make_service(WatchedEngine(script), POLICY % (phase, phase), tmp_path / "audit.jsonl")


def ask(client, route, body, **changes):
    method, path = route
    path = path.replace("{model_id:path}", "scripted")
    return client.request(method, path, json=None if body is None else {**body, **changes})


def check(app: FastAPI) -> None:
    """Raises AssertionError for a route that runs the model beside the pipeline, or is in no table."""
    engine = app.state.service.engine
    with TestClient(app) as client:
        for route in walk(app.routes):
            engine.runs.clear()
            if route in NEVER_RUNS_THE_MODEL:
                reply = ask(client, route, NEVER_RUNS_THE_MODEL[route])
                assert reply.status_code == 200, (route, reply.text)
                assert engine.runs == [], f"{route} runs the model; its table says never"
                continue
            assert route in RUNS_THE_MODEL, f"{route} is in no table of this test: does it run the model?"
            ask(client, route, RUNS_THE_MODEL[route])
            assert engine.runs == [True], f"{route} runs the model beside the pipeline"


def test_every_route_that_runs_the_model_does_so_through_the_pipeline(tmp_path):
    app = create_app(service_with(tmp_path), expose_metrics=True)
    check(app)
    assert set(walk(app.routes)) >= set(RUNS_THE_MODEL), "the tables have a route that the server has not"


def routes_of(routes):
    for route in routes:
        yield from routes_of(route.original_router.routes) if hasattr(route, "original_router") else (route,)


def test_every_route_that_takes_a_body_reads_json_strictly(tmp_path):
    """Through `server.api.routing.Router`: keys given twice, NaN and the like are refused by none else."""
    service = service_with(tmp_path)
    for app in (create_app(service), create_admin_app(service)):
        taking = [route for route in routes_of(app.routes) if getattr(route, "body_field", None)]
        assert [route.path for route in taking if not isinstance(route, _StrictRoute)] == []
    assert len([r for r in routes_of(create_app(service).routes) if isinstance(r, _StrictRoute)]) >= 8


def test_no_route_of_the_admin_port_runs_the_model(tmp_path):
    app = create_admin_app(service_with(tmp_path))
    assert set(walk(app.routes)) <= set(NEVER_RUNS_THE_MODEL)
    check(app)


def _beside_the_pipeline() -> APIRouter:
    router = APIRouter()

    @router.post("/v1/new")
    async def new(request: Request):
        steps = request.app.state.service.engine.generate(EngineRequest("x", [1], SamplingParams()))
        return {"text": "".join([token.text async for step in steps for token in step.tokens])}

    return router


@pytest.mark.parametrize("table", [None, RUNS_THE_MODEL, NEVER_RUNS_THE_MODEL], ids=["none", "runs", "never"])
def test_a_route_beside_the_pipeline_is_found_whatever_table_it_is_in(tmp_path, monkeypatch, table):
    app = create_app(service_with(tmp_path))
    app.include_router(_beside_the_pipeline())
    if table is not None:
        monkeypatch.setitem(table, ("POST", "/v1/new"), {})
    with pytest.raises(AssertionError, match="/v1/new"):
        check(app)


ONLY_READ = {"/v1/moderations", "/beta/litellm_basic_guardrail_api"}
GENERATING = [route for route in RUNS_THE_MODEL if route[1] not in ONLY_READ]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", GENERATING, ids=lambda route: route[1])
def test_what_is_blocked_leaves_by_no_route(tmp_path, route, stream):
    """Not a word of the reply, a decision record, and no success in what the client is told."""
    service = service_with(tmp_path, "response")
    with TestClient(create_app(service)) as client:
        reply = ask(client, route, RUNS_THE_MODEL[route], stream=stream)
    assert reply.status_code == 200
    assert WORD not in reply.text
    assert "content_filter" in reply.text or '"refusal"' in reply.text
    (record,) = map(orjson.loads, (tmp_path / "audit.jsonl").read_bytes().splitlines())
    assert (record["action"], record["delivered_tokens"]) == ("block", 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", GENERATING, ids=lambda route: route[1])
def test_a_blocked_prompt_is_a_400_by_every_route_before_a_stream_begins(tmp_path, route, stream):
    service = service_with(tmp_path, "prompt")
    with TestClient(create_app(service)) as client:
        reply = ask(client, route, RUNS_THE_MODEL[route], stream=stream)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "content_filter")
    assert reply.json()["interlock"]["phase"] == "prompt"
    assert reply.headers["x-interlock-action"] == "block"


@pytest.mark.parametrize("holdback", [0, 2])
def test_by_no_route_does_a_token_leave_before_it_and_its_holdback_are_decided(tmp_path, holdback):
    """Whatever is scored: streamed, exactly what stands before the blocking token and the holdback; whole, nothing of it."""
    scripts = [Script()]
    engine = ScriptedEngine(lambda _: scripts[-1], ("harm", "deception"))
    policy = (POLICY % ("response", "response")).replace(
        "rules:", f"defaults: {{holdback: {holdback}}}\nrules:"
    )
    service = make_service(engine, policy, tmp_path / "audit.jsonl")
    with TestClient(create_app(service)) as client:

        @settings(max_examples=40, suppress_health_check=list(HealthCheck))
        @given(
            series=st.lists(st.sampled_from([0.0, 0.5, 0.51, 0.9]), min_size=1, max_size=10),
            route=st.sampled_from(GENERATING),
            stream=st.booleans(),
        )
        def check_one(series, route, stream):
            scripts.append(
                Script([f"<{i}>" for i in range(len(series))], scores(), {**scores(), "harm": series})
            )
            said = ask(client, route, RUNS_THE_MODEL[route], stream=stream).text
            blocked_at = next((index for index, score in enumerate(series) if score > 0.5), None)
            shown = [index for index in range(len(series)) if f"<{index}>" in said]
            if blocked_at is None:
                assert shown == list(range(len(series)))
            else:
                # a text completion tells what it had, whole or streamed
                told = stream or route[1] == "/v1/completions"
                assert shown == list(range(max(0, blocked_at - holdback) if told else 0))

        check_one()
    assert service.metrics.registry.get_sample_value("interlock_leaks_prevented_total") == 0


STEER = """
apiVersion: interlock/v1
kind: Policy
metadata: {name: p, version: "1"}
rules:
  - {id: calm-down, when: max(response.harm) > 0.5, then: {steer: {vector: calm, strength: 2.5}}}
tests:
  - {name: t, given: {response: {harm: "0.9"}}, expect: {action: steer}}
"""


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", GENERATING, ids=lambda route: route[1])
def test_steering_reaches_the_engine_by_every_route(tmp_path, route, stream):
    script = Script([WORD] * 5, scores(), scores(harm={1: 0.9}))
    engine = ScriptedEngine(lambda _: script, ("harm", "deception"), vectors=("calm",))
    service = make_service(engine, STEER, tmp_path / "audit.jsonl", vectors=("calm",))
    with TestClient(create_app(service)) as client:
        reply = ask(client, route, RUNS_THE_MODEL[route], stream=stream)
    assert reply.text.count(WORD) >= 1
    assert '"action":"steer"' in reply.text
    assert {(command.vector, command.strength) for _, command in engine.steered} == {("calm", 2.5)}
