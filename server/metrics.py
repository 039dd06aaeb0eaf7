"""Every metric in one file. Labels are closed sets from our own configuration, never anything that a client sent."""

from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

from guard.policy import Policy
from guard.types import Mode, Phase
from monitors.artifacts import MonitorSet
from monitors.stopwatch import PassTimes
from server.auditing.metrics import AuditMetrics
from server.keys.metrics import KeyMetrics
from server.load_metrics import LoadMetrics
from server.monitor_metrics import MonitorMetrics
from server.readiness import ReadinessMetrics
from server.tls import TlsMetrics

# bucket edges as vLLM's, so that dashboards can put the two side by side
_TTFT_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
)
_ITL_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_E2E_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_DECIDE_S = (0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05)
_OVERHEAD_S = (0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
_HOLDBACK_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LAG_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_SCORE = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
_TOKENS = (0, 1, 2, 4, 8, 16, 32, 64, 128)

ENDPOINTS = ("chat", "completions", "responses", "messages", "moderations")
OUTCOMES = ("allowed", "annotated", "steered", "replaced", "blocked", "cancelled", "error", "shed")


class Metrics:
    """The metrics of one server, in a registry of their own. Children of known labels exist from the start."""

    def __init__(self, registry: CollectorRegistry | None = None, *, model: str = "model") -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry or CollectorRegistry()
        self.model = model

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"interlock_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"interlock_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
            return Histogram(
                f"interlock_{name}", text, labels, registry=self.registry, buckets=tuple(buckets)
            )

        self.build_info = gauge("build_info", "The running version.", "version")
        self.model_info = gauge("model_info", "The model served.", "model", "dtype", "fingerprint12")
        self.http_requests = counter(
            "http_requests_total", "HTTP requests answered.", "route", "method", "code"
        )
        self.unknown_fields = counter(
            "request_unknown_fields_total", "Request fields that no endpoint knows, accepted and ignored."
        )
        self.requests = counter(
            "requests_total", "Choices that ended, by outcome.", "model", "endpoint", "outcome"
        )
        self.uncovered = counter(
            "requests_uncovered_total",
            "Choices in which a monitor that a rule reads gave no score for some token.",
            "model",
        )
        self.duration = histogram(
            "request_duration_seconds", "From admission to the end of a choice.", _E2E_S, "model"
        )
        self.queue = histogram(
            "request_queue_seconds", "From admission to a place, of requests that got one.", _TTFT_S, "model"
        )
        self.deadlines = counter(
            "deadlines_exceeded_total", "Requests ended because they took longer than any may."
        )
        self.ttft = histogram(
            "time_to_first_token_seconds",
            "From admission to the first token that may leave.",
            _TTFT_S,
            "model",
        )
        self.itl = histogram(
            "inter_token_latency_seconds", "Between consecutive scored tokens.", _ITL_S, "model"
        )
        self.tokens = counter("tokens_total", "Tokens fed to the model.", "model", "type")
        self.monitor_score = histogram(
            "monitor_score", "Highest score of a request.", _SCORE, "monitor", "scope"
        )
        self.monitor_tokens = counter(
            "monitor_tokens_scored_total", "Tokens that a monitor scored.", "monitor"
        )
        self.monitor_skipped = counter(
            "monitor_skipped_total", "Choices in which a monitor could not be judged.", "monitor", "reason"
        )
        self.monitors = MonitorMetrics(self.registry)
        self.rule_matches = counter(
            "rule_matches_total", "Rules that matched, once per choice.", "rule", "action", "mode"
        )
        self.rule_overrides = gauge(
            "rule_overrides",
            "1 for each gate that an enforced rule does not pass and goes without by its written override.",
            "rule",
            "gate",
        )
        self.decisions = counter(
            "decisions_total", "Choices by the action taken and the phase that led to it.", "action", "phase"
        )
        self.decision_duration = histogram(
            "decision_duration_seconds", "Scoring on the host and deciding, per step.", _DECIDE_S, "phase"
        )
        self.over_budget = counter(
            "decisions_over_budget_total",
            "Steps whose decision took longer than the policy's budget: its rules' `on_error` said what followed.",
        )
        self.block_delivered = histogram(
            "block_delivered_tokens", "Tokens the client already had when a response was blocked.", _TOKENS
        )
        self.holdback = histogram(
            "stream_holdback_seconds",
            "From feeding a token to letting it leave, of streams; of several that leave at once, the oldest.",
            _HOLDBACK_S,
        )
        self.overhead = histogram(
            "monitor_overhead_seconds",
            "What monitors add: reading (capture) and editing (steer) in a forward pass; of each choice and step, making "
            "scores of what was read (score) and deciding (decide).",
            _OVERHEAD_S,
            "stage",
        )
        self.steered_tokens = counter(
            "steered_tokens_total", "Response tokens fed under a steering vector.", "vector"
        )
        self.monitor_info = gauge("monitor_info", "A monitor in force.", "monitor", "kind", "version")
        self.loop_lag = histogram(
            "event_loop_lag_seconds", "How late the event loop wakes who asked to be woken.", _LAG_S
        )
        self.steered_choices = counter(
            "steered_choices_total", "Choices in which a steering vector was switched on.", "vector"
        )
        self.failures = counter(
            "failures_total",
            "Guard failures, by whether the request went on (open) or not (closed).",
            "component",
            "disposition",
        )
        self.leaks_prevented = counter(
            "leaks_prevented_total",
            "Unscored tokens stopped by the run-time check. Anything above 0 is a bug.",
        )
        self.shed = counter("shed_total", "Requests refused before they began.", "reason")
        self.disconnects = counter(
            "client_disconnects_total", "Requests cut off because the client went away."
        )
        self.stream_stalls = counter(
            "stream_stalls_total", "Streams given up because the client took nothing."
        )
        self.policy_info = gauge("policy_info", "The policy in force.", "policy", "version", "digest12")
        self.policy_reloads = counter("policy_reloads_total", "Attempts to reload the policy.", "result")
        self.policy_reload_time = gauge(
            "policy_last_reload_success_timestamp_seconds", "When the policy was last reloaded, in Unix time."
        )
        self.exception_expiry = gauge(
            "policy_exception_expiry_timestamp_seconds",
            "When an exception expires, in Unix time.",
            "exception",
        )
        self.policy_reload_ok = gauge(
            "policy_last_reload_successful", "1 if the policy on disk is the one in force."
        )
        self.audit = AuditMetrics(self.registry)
        self.load = LoadMetrics(self.registry, model)
        self.keys = KeyMetrics(self.registry)
        self.tls = TlsMetrics(self.registry)
        self.readiness = ReadinessMetrics(self.registry)
        self._create_children()

    def _create_children(self) -> None:
        for endpoint in ENDPOINTS:
            for outcome in OUTCOMES:
                self.requests.labels(self.model, endpoint, outcome)
        # looked up once: these are observed for every token
        self.token_gap = self.itl.labels(self.model)
        self.deciding = {phase: self.decision_duration.labels(phase) for phase in Phase}
        self.capturing, self.steering, self.scoring, self.ruling = (
            self.overhead.labels(stage) for stage in ("capture", "steer", "score", "decide")
        )
        self.uncovered.labels(self.model)
        for metric in (self.duration, self.queue, self.ttft, self.itl):
            metric.labels(self.model)
        for kind in ("prompt", "completion"):
            self.tokens.labels(self.model, kind)
        for component in ("monitor", "engine", "audit", "canary", "second_opinion", "limits"):
            for disposition in ("open", "closed"):
                self.failures.labels(component, disposition)
        self.policy_reload_ok.set(1)
        for result in ("success", "failure", "unchanged"):
            self.policy_reloads.labels(result)
        for reason in (
            "queue_full",
            "queue_timeout",
            "prompt_too_long",
            "draining",
            "audit_unwritable",
            "canary",
            "breaker",
            "rate_limit",
            "engine",
        ):
            self.shed.labels(reason)

    def passed(self, times: PassTimes) -> None:
        """Of one forward pass. Called in the thread that runs the model."""
        self.capturing.observe(times.capture)
        if times.steer:
            self.steering.observe(times.steer)

    def show_monitors(self, monitors: MonitorSet) -> None:
        """Name those in force, and create the series of their vectors."""
        self.monitor_info.clear()
        for monitor in monitors.monitors:
            self.monitor_info.labels(monitor.name, monitor.transform.kind, monitor.version).set(1)
        for vector in monitors.vectors:
            self.steered_tokens.labels(vector)
            self.steered_choices.labels(vector)

    def show_policy(self, policy: Policy) -> None:
        """Name the policy in force, and create the series of its rules and monitors, so that a silent one shows as 0."""
        self.policy_info.clear()
        self.policy_info.labels(policy.name, policy.version, policy.digest[:12]).set(1)
        for rule in policy.rules:
            for mode in (Mode.ENFORCE, Mode.SHADOW):
                self.rule_matches.labels(rule.id, rule.action.kind, mode)
        self.exception_expiry.clear()
        for waiver in policy.waivers:
            self.exception_expiry.labels(waiver.id).set(waiver.expires.timestamp())
        self.rule_overrides.clear()
        for rule in policy.rules:
            for gate in rule.overridden:
                self.rule_overrides.labels(rule.id, gate).set(1)
        for name in sorted({name for _, name in policy.monitors}):
            self.monitor_tokens.labels(name)
            self.monitors.expect(name)
            for reason in ("missing", "nan", "error", "timeout", "shed"):
                self.monitor_skipped.labels(name, reason)
