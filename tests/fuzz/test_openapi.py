"""Requests made from our own OpenAPI document, right and wrong ones: no 5xx, answers as described, and nothing of the input repeated.

Each operation of both ports is called over a real socket. What is generated is the same in each run.
"""

import json
import string
import tempfile
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from server.app import create_admin_app, create_app
from server.engines.scripted import Script, ScriptedEngine
from tests.e2e.conftest import make_service
from tests.e2e.test_every_route_is_guarded import NEVER_RUNS_THE_MODEL, RUNS_THE_MODEL
from tests.fuzz.conftest import POLICY

CANARY = "zqcanary"  # no word of ours
ENDS_THE_SERVER = {("POST", "/-/drain")}
CHECKS = [  # not what a schema can't say: that fields must fit each other
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
DETERMINISTIC = settings(
    max_examples=12,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def documents() -> dict[str, dict[str, Any]]:
    """The OpenAPI document of each port."""
    with tempfile.TemporaryDirectory() as folder:
        engine = ScriptedEngine(lambda _: Script(), ("harm", "deception"), vectors=("calm",))
        service = make_service(engine, POLICY, Path(folder) / "x.jsonl", vectors=("calm",), audit=None)
        return {
            "api": create_app(service, expose_metrics=True).openapi(),
            "admin": create_admin_app(service).openapi(),
        }


DOCUMENTS = documents()
OPERATIONS = [
    (port, method.upper(), path)
    for port, document in DOCUMENTS.items()
    for path, methods in document["paths"].items()
    for method in methods
    if (method.upper(), path) not in ENDS_THE_SERVER
]
SCHEMAS = {port: schemathesis.openapi.from_dict(document) for port, document in DOCUMENTS.items()}


def can_be_asked_wrongly(port, method, path):
    operation = SCHEMAS[port][path][method]
    return bool(operation.body or operation.query)


ASKED = [(*operation, GenerationMode.POSITIVE) for operation in OPERATIONS]
ASKED += [
    (*operation, GenerationMode.NEGATIVE) for operation in OPERATIONS if can_be_asked_wrongly(*operation)
]


@pytest.mark.parametrize(("port", "method", "path", "mode"), ASKED)
def test_whatever_is_asked_is_answered_as_described(ports, port, method, path, mode):
    operation = SCHEMAS[port][path][method]

    @DETERMINISTIC
    @given(operation.as_strategy(generation_mode=mode))
    def check(case):
        if isinstance(case.body, dict) and mode is GenerationMode.POSITIVE and "model" in case.body:
            case.body["model"] = "scripted"  # no other gets further than the door
        case.call_and_validate(base_url=getattr(ports, port), session=session, timeout=120, checks=CHECKS)

    with requests.Session() as session:
        check()
    ports.is_well()


@pytest.mark.parametrize("port", DOCUMENTS)
def test_every_route_is_described(port):
    tables = {**RUNS_THE_MODEL, **NEVER_RUNS_THE_MODEL}
    undescribed = {"/ping"}  # an alias of /health
    described = {(method, path) for other, method, path in OPERATIONS if other == port} | ENDS_THE_SERVER
    routes = {
        (method, path.replace(":path", ""))
        for method, path in tables
        if path not in undescribed
        and method != "HEAD"
        and path.startswith(("/-", "/debug")) == (port == "admin")
    }
    assert routes <= described


def test_the_admin_port_hands_out_what_the_serving_port_speaks(ports):
    told = ports.http.get(f"{ports.admin}/-/openapi.json").json()
    assert "/v1/chat/completions" in told["paths"]
    assert not any(path.startswith("/-") for path in told["paths"])


# --- nothing of the input is repeated -----------------------------------------------------------------------------------

BODIES = [
    (route, body) for route, body in {**RUNS_THE_MODEL, **NEVER_RUNS_THE_MODEL}.items() if body is not None
]
PRINTABLE = st.text(string.printable, max_size=8)


@st.composite
def planted(draw, value):
    """A body with the canary planted somewhere: in a text, as a key, or where something else belongs."""
    marked = draw(st.sampled_from([CANARY, f"{CANARY}\n", f"{{{CANARY}}}", f"{CANARY}\u2028<b>"]))
    place = draw(st.sampled_from(["text", "key", "kind", "extra"]))
    if isinstance(value, dict) and value:
        if place == "extra":
            return {
                **value,
                draw(st.sampled_from([marked, "tools", "stop", "metadata", "user", "n"])): {marked: marked},
            }
        if place == "key":
            return {**value, marked: draw(PRINTABLE)}
        key = draw(st.sampled_from(sorted(value)))
        return {**value, key: draw(planted(value[key]))}
    if isinstance(value, list) and value:
        index = draw(st.integers(0, len(value) - 1))
        return [*value[:index], draw(planted(value[index])), *value[index + 1 :]]
    if place == "kind":
        return draw(st.sampled_from([[marked], {marked: 1}, [{marked: marked}], {"type": marked, "text": 1}]))
    return marked


@pytest.mark.parametrize(
    ("route", "body"), BODIES, ids=lambda value: value[1] if isinstance(value, tuple) else ""
)
def test_no_error_repeats_what_was_sent(ports, route, body):
    method, path = route
    url = (ports.admin if path.startswith("/-") else ports.api) + path

    @settings(DETERMINISTIC, max_examples=40)
    @given(planted(body))
    def check(sent):
        reply = ports.http.request(method, url, json=sent)
        assert reply.status_code < 500, reply.text
        if reply.status_code != 200:
            assert CANARY not in reply.text
            assert CANARY not in str(reply.headers)
            told = reply.json()["error"]
            assert {"message", "type", "param", "code"} <= set(told)

    check()
    ports.is_well()


@pytest.mark.parametrize("path", ["/{}", "/v1/models/{}", "/v1/{}/x", "/-/{}", "/v1/chat/completions?{}={}"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", CANARY.upper()])
def test_no_refusal_repeats_the_path_the_method_or_a_header(ports, method, path):
    headers = {"x-request-id": f"{CANARY} {CANARY}", CANARY: CANARY, "authorization": f"Bearer {CANARY}"}
    for base in (ports.api, ports.admin):
        reply = ports.http.request(
            method, base + path.format(CANARY, CANARY), headers=headers, content=CANARY
        )
        assert 400 <= reply.status_code < 500
        assert CANARY not in (reply.text + str(reply.headers)).lower()


def test_and_nothing_of_it_was_written_down(ports):
    """Not in a log line, not in a label of a metric; in the decision log only as metadata, which policies are matched on."""
    for text in (ports.logs.text, ports.metrics):
        assert CANARY not in text.lower()
        assert "Traceback" not in text
    records = [json.loads(line) for line in ports.audit.read_text().splitlines()]
    assert records
    assert not [record for record in records if CANARY in json.dumps({**record, "metadata": {}})]
