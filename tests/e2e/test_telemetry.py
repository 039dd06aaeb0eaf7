"""Traces and evaluation events, by the real exporter, to a receiver that listens on a socket and reads OTLP."""

import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is not installed")

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from server.assemble import _telemetry
from server.config import ServerConfig
from server.engines.scripted import Script
from server.telemetry.otlp import Otlp
from tests.e2e.conftest import scores
from tests.waiting import until

POLICY = """
apiVersion: interlock/v1
kind: Policy
metadata: {name: traced, version: "1"}
rules:
  - {id: no-harm, when: max(prompt.harm) > 0.5, then: {block: {}}}
  - {id: seen, when: max(response.deception) > 0.5, mode: shadow, then: {block: {}}}
tests:
  - {name: t, given: {prompt: {harm: "0.9"}}, expect: {action: block}}
"""
TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED, UNSAMPLED = (f"00-{TRACE}-b7ad6b7169203331-0{flag}" for flag in (1, 0))
SECRET = "pomegranate"


class Receiver:
    """What was sent to /v1/traces and /v1/logs."""

    def __init__(self):
        self.bodies = {"/v1/traces": [], "/v1/logs": []}
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                assert not self.headers.get("content-encoding")
                receiver.bodies[self.path].append(body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def spans(self):
        sent = [ExportTraceServiceRequest.FromString(body) for body in self.bodies["/v1/traces"]]
        return [span for one in sent for r in one.resource_spans for s in r.scope_spans for span in s.spans]

    @property
    def events(self):
        sent = [ExportLogsServiceRequest.FromString(body) for body in self.bodies["/v1/logs"]]
        return [
            event for one in sent for r in one.resource_logs for s in r.scope_logs for event in s.log_records
        ]


def attributes(item):
    return {pair.key: plain(pair.value) for pair in item.attributes}


def plain(value):
    if value.HasField("array_value"):
        return [plain(item) for item in value.array_value.values]
    return getattr(value, value.WhichOneof("value"))


@pytest.fixture
def receiver(monkeypatch):
    receiver = Receiver()
    url = f"http://127.0.0.1:{receiver.server.server_address[1]}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


@pytest.fixture
def traced(serve):
    def start(prompt=0.1, response=0.1):
        telemetry = Otlp("0")
        script = Script(["a", "b"], scores(prompt), scores(response))
        live = serve(POLICY, script, service_options={"telemetry": telemetry}, expose_metrics=True)
        return live, telemetry

    return start


def test_a_choice_is_a_span_in_its_clients_trace_and_each_score_an_event(traced, receiver):
    live, telemetry = traced(response=0.9)
    reply = live.chat(SECRET, extra_headers={"traceparent": SAMPLED})
    until(lambda: telemetry._spans.force_flush() and len(receiver.spans) == 2)  # its own ends after the reply
    telemetry.close()
    spans = {span.name: span for span in receiver.spans}
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    request, choice = spans["POST /v1/chat/completions"], spans["chat scripted"]
    assert choice.parent_span_id == request.span_id
    told = attributes(choice)
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.response.id"] == reply.interlock["decision_id"]
    assert told["gen_ai.response.finish_reasons"] == ["stop"]
    assert told["gen_ai.usage.output_tokens"] == 2
    assert (told["interlock.action"], told["interlock.shadow"]) == ("allow", ["seen"])
    assert choice.start_time_unix_nano < choice.end_time_unix_nano
    found = {(e["gen_ai.evaluation.name"], e["interlock.phase"]): e for e in map(attributes, receiver.events)}
    assert set(found) == {("harm", "prompt"), ("deception", "response")}
    assert found["deception", "response"]["gen_ai.evaluation.score.value"] == pytest.approx(0.9)
    assert {event.span_id for event in receiver.events} == {choice.span_id}
    assert {event.event_name for event in receiver.events} == {"gen_ai.evaluation.result"}


def test_a_block_is_no_error_and_is_kept_where_the_rest_of_the_trace_is_not(traced, receiver):
    live, telemetry = traced(prompt=0.9)
    with pytest.raises(openai.BadRequestError):
        live.chat(extra_headers={"traceparent": UNSAMPLED})
    telemetry.close()
    [choice] = receiver.spans
    told = attributes(choice)
    assert (choice.trace_id.hex(), choice.status.code) == (TRACE, 0)
    assert (told["interlock.action"], told["interlock.rules"]) == ("block", ["no-harm"])


def test_what_its_client_does_not_record_is_not_sent(traced, receiver):
    live, telemetry = traced()
    live.chat(extra_headers={"traceparent": UNSAMPLED})
    telemetry.close()
    assert (receiver.spans, receiver.events) == ([], [])


def test_no_text_is_sent(traced, receiver):
    for live, telemetry in (traced(), traced(prompt=0.9)):
        body = {
            "model": live.model,
            "messages": [{"role": "user", "content": SECRET}],
            "metadata": {"x": SECRET},
        }
        live.http.post("/v1/chat/completions", json=body)
        telemetry.close()
    assert receiver.spans
    assert SECRET.encode() not in b"".join(body for bodies in receiver.bodies.values() for body in bodies)


def test_no_text_is_sent_of_a_failure_that_nobody_expected(traced, receiver, monkeypatch):
    def fail(*_, **__):
        raise ValueError(SECRET)

    live, telemetry = traced()
    monkeypatch.setattr(type(live.service.tokenizer), "encode", fail)
    reply = live.http.post("/v1/completions", json={"model": live.model, "prompt": "x"})
    assert reply.status_code == 500
    until(lambda: telemetry._spans.force_flush() and receiver.spans)
    telemetry.close()
    assert SECRET.encode() not in b"".join(body for bodies in receiver.bodies.values() for body in bodies)


def test_metrics_carry_the_trace_where_they_are_asked_for_as_openmetrics(traced, receiver):
    live, _ = traced()
    live.chat(extra_headers={"traceparent": SAMPLED})
    page = live.http.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert page.headers["content-type"].startswith("application/openmetrics-text")
    [line] = [line for line in page.text.splitlines() if TRACE in line]
    assert line.startswith("interlock_time_to_first_token_seconds_bucket")
    assert TRACE not in live.http.get("/metrics").text


def test_a_receiver_that_is_away_costs_no_request(traced, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    live, _ = traced()
    for _ in range(3):
        assert live.chat().choices[0].message.content == "ab"


def test_without_the_extra_the_server_does_not_start_and_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "server.telemetry.otlp", None)
    with pytest.raises(ValueError, match=r"interlock\[otel\]"):
        _telemetry(ServerConfig(telemetry="otlp"))
