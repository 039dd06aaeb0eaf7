"""Traces and evaluation events by OpenTelemetry, sent by OTLP over HTTP. Needs the extra `otel`.

Spans and events follow the semantic conventions for generative AI as far as they are settled; what a guard did has no agreed
names yet, and is told as `interlock.*`. A block is an answer, not an error: the span's status stays unset. Where to send, the
sampling and the service's name are set by the standard variables (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER`,
`OTEL_SERVICE_NAME`); what can't be sent is dropped by the exporter, which runs in threads of its own.
"""

import math
from collections.abc import Callable, Sequence
from datetime import datetime

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, StatusCode, TraceState
from opentelemetry.util.types import Attributes
from starlette.types import ASGIApp

from server.telemetry.types import Told

_QUIET = "/health,/ping,/livez,/readyz,/startupz,/metrics"
_PLAIN = frozenset({"allow", "log"})
_CLOSE_MS = 3000


class KeepDecisions(Sampler):
    """Samples as `others` do, and every choice that the policy did something to."""

    def __init__(self, others: Sampler) -> None:
        self._others = others

    def should_sample(  # noqa: PLR0917  # their signature
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        action = (attributes or {}).get("interlock.action")
        if action is not None and action not in _PLAIN:
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, trace_state)
        return self._others.should_sample(
            parent_context, trace_id, name, kind, attributes, links, trace_state
        )

    def get_description(self) -> str:
        return f"KeepDecisions({self._others.get_description()})"


class Otlp:
    """Implements `Telemetry`."""

    def __init__(self, version: str) -> None:
        # what the environment says of the service wins
        own = Resource.create({"service.name": "interlock", "service.version": version})
        resource = own.merge(OTELResourceDetector().detect())
        self._spans = TracerProvider(resource=resource)
        self._spans.sampler = KeepDecisions(self._spans.sampler or DEFAULT_ON)
        self._spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._events = LoggerProvider(resource=resource)
        self._events.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
        self._tracer = self._spans.get_tracer("interlock", version)
        self._logger = self._events.get_logger("interlock", version)

    def choice(self, tell: Callable[[], Told]) -> None:
        """A span that begins and ends in the past, so that its sampling can go by what was decided."""
        told = tell()
        ended = _nanoseconds(told.ended)
        span = self._tracer.start_span(
            f"{told.operation} {told.model}",
            kind=SpanKind.INTERNAL,
            attributes=_attributes(told),
            start_time=_nanoseconds(told.began),
        )
        if told.error is not None:
            span.set_attribute("error.type", told.error)
            span.set_status(StatusCode.ERROR)
        context = trace.set_span_in_context(span)
        if span.is_recording():
            for (phase, monitor), score in told.maxima.items():
                self._logger.emit(
                    event_name="gen_ai.evaluation.result",
                    timestamp=ended,
                    context=context,
                    attributes={
                        "gen_ai.evaluation.name": monitor,
                        **(
                            {"gen_ai.evaluation.score.value": score}
                            if math.isfinite(score)
                            else {"error.type": "no_score"}
                        ),
                        "gen_ai.response.id": told.decision_id,
                        "interlock.phase": phase.value,
                    },
                )
        span.end(ended)

    def exemplar(self) -> dict[str, str] | None:
        context = trace.get_current_span().get_span_context()
        return {"trace_id": f"{context.trace_id:032x}"} if context.trace_flags.sampled else None

    def wrapped(self, app: ASGIApp) -> ASGIApp:
        return OpenTelemetryMiddleware(
            app, excluded_urls=_QUIET, tracer_provider=self._spans, exclude_spans=["receive", "send"]
        )

    def close(self) -> None:
        self._spans.force_flush(_CLOSE_MS)
        self._events.force_flush(_CLOSE_MS)
        self._spans.shutdown()
        self._events.shutdown()


def _attributes(told: Told) -> dict[str, str | int | float | tuple[str, ...]]:
    found = {
        "gen_ai.operation.name": told.operation,
        "gen_ai.provider.name": "interlock",
        "gen_ai.request.model": told.model,
        "gen_ai.response.model": told.model,
        "gen_ai.response.id": told.decision_id,
        "gen_ai.response.finish_reasons": None if told.finish is None else (told.finish,),
        "gen_ai.usage.input_tokens": told.num_prompt,
        "gen_ai.usage.output_tokens": told.num_response,
        "interlock.choice": told.choice,
        "interlock.outcome": told.outcome,
        "interlock.action": told.action,
        "interlock.phase": told.phase.value if told.phase else None,
        "interlock.policy": told.policy,
        "interlock.rules": told.rules,
        "interlock.shadow": told.shadow,
        "interlock.delivered_tokens": told.num_delivered,
        "interlock.time_to_first_token": told.first_token_s,
    }
    return {name: value for name, value in found.items() if value is not None}


def _nanoseconds(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000
