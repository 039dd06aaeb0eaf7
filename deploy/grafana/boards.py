"""What the dashboards show. `$S` in a query stands for the labels that the variables select, `$W` for the rate's window."""

from dataclasses import dataclass
from typing import Final, Literal

Color = Literal["green", "yellow", "orange", "red"]


@dataclass(frozen=True, slots=True)
class Query:
    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    description: str
    unit: str  # Grafana's name of it
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat", "heatmap"] = "timeseries"
    width: int = 8  # of 24
    red_above: float | None = None  # where its alert fires
    red_below: float | None = None
    stack: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Board:
    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    picks: tuple[Literal["monitor", "rule"], ...] = ()  # further variables


def quantiles(metric: str, by: str = "", *, of: tuple[float, ...] = (0.5, 0.95, 0.99)) -> tuple[Query, ...]:
    keep = f"le, {by}" if by else "le"
    legend = f" {{{{{by}}}}}" if by else ""
    return tuple(
        Query(
            f"histogram_quantile({q}, sum by ({keep}) (rate({metric}_bucket{{$S}}[$W])))",
            f"p{q * 100:g}{legend}",
        )
        for q in of
    )


def rate(metric: str, by: str, more: str = "") -> Query:
    labels = f"$S, {more}" if more else "$S"
    return Query(f"sum by ({by}) (rate({metric}{{{labels}}}[$W]))", f"{{{{{by}}}}}")


def share(part: str, whole: str) -> str:
    return f"sum(rate({part}[$W])) / sum(rate({whole}[$W]))"


_ALL = "interlock_requests_total{$S}"
_FAILED = 'interlock_requests_total{$S, outcome=~"error|shed"}'
_BLOCKED = 'interlock_requests_total{$S, outcome=~"blocked|replaced"}'
_UNCOVERED = "interlock_requests_uncovered_total{$S}"

# a panel a line reads as a table
# fmt: off
OVERVIEW: Final = Board(
    "interlock-overview",
    "Interlock / Overview",
    "Is it up, does it guard, is it fast: start here.",
    (
        Row(
            "Now",
            (
                Panel("Ready", "Servers that may be sent requests, as /readyz tells.", "short", (Query("sum(interlock_ready{$S})"),), "stat", 4, red_below=1),
                Panel("Requests", "Choices that ended, by the second, whatever came of them.", "reqps", (Query(f"sum(rate({_ALL}[$W]))"),), "stat", 4),
                Panel("Blocked or replaced", "Share of requests that the policy ended. Not an error: look at Decisions for by which rule.", "percentunit", (Query(share(_BLOCKED, _ALL)),), "stat", 4),
                Panel("Unavailable", "Share of requests that failed or were refused for lack of room. The objective is 0.1 % a month.", "percentunit", (Query(share(_FAILED, _ALL)),), "stat", 4, red_above=0.0144),
                Panel("Not covered", "Share of requests with a token that a needed monitor did not score. The objective is 0.01 % a month.", "percentunit", (Query(share(_UNCOVERED, _ALL)),), "stat", 4, red_above=0.00144),
                Panel("Unguarded", "Failures in the last hour after which a request went on, because something is set to fail open.", "short", (Query('sum(increase(interlock_failures_total{$S, disposition="open"}[1h]))'),), "stat", 4, red_above=1e-9),
            ),
        ),
        Row(
            "Traffic",
            (
                Panel("Requests by outcome", "What came of each choice. `shed`: refused for lack of room; `error`: it failed, or the guard could not judge and fails closed.", "reqps", (rate("interlock_requests_total", "outcome"),), stack=True),
                Panel("Requests by endpoint", "The surfaces that clients use.", "reqps", (rate("interlock_requests_total", "endpoint"),), stack=True),
                Panel("Time to first token", "From admission to the first token that may leave: waiting in line, prefill, scoring of the prompt, holdback.", "s", quantiles("interlock_time_to_first_token_seconds")),
                Panel("Duration", "From admission to the end of a choice.", "s", quantiles("interlock_request_duration_seconds")),
                Panel("Refused before they began", "By why: see the runbook of InterlockQueueSaturated for those that mean too little room.", "reqps", (rate("interlock_shed_total", "reason"),), stack=True),
                Panel("Refused for their key", "By why. `wrong` and `unknown` at a high rate are somebody guessing.", "reqps", (rate("interlock_auth_failures_total", "reason"),), stack=True),
            ),
        ),
        Row(
            "Objectives",
            (
                Panel("Unavailable, by window", "The error budget's burn. At 1.44 % over an hour and over five minutes somebody is paged.", "percentunit", tuple(Query(f"job:interlock_unavailable:ratio_rate{w}", w) for w in ("5m", "1h", "6h")), width=12, red_above=0.0144),
                Panel("Not covered, by window", "The coverage budget's burn: tokens that a needed monitor did not score.", "percentunit", tuple(Query(f"job:interlock_uncovered:ratio_rate{w}", w) for w in ("5m", "1h", "6h")), width=12, red_above=0.00144),
            ),
        ),
        Row(
            "Failures and replicas",
            (
                Panel("Failures by part", "What failed, and whether requests were refused (closed) or went on without it (open).", "short", (Query("sum by (component, disposition) (rate(interlock_failures_total{$S}[$W]))", "{{component}} {{disposition}}"),)),
                Panel("Policies in force", "More than one for longer than a rollout takes: replicas decide differently.", "short", (Query("count by (policy, version, digest12) (interlock_policy_info{$S})", "{{policy}}@{{version}}#{{digest12}}"),)),
                Panel("Versions", "Of Interlock, and how many servers run each.", "short", (Query("count by (version) (interlock_build_info{$S})", "{{version}}"),)),
            ),
        ),
    ),
)

DECISIONS: Final = Board(
    "interlock-decisions",
    "Interlock / Decisions",
    "What the policy does, by rule; what that costs in tokens and in time.",
    (
        Row(
            "Actions",
            (
                Panel("Decisions by action", "The most severe thing that was done to each choice.", "reqps", (rate("interlock_decisions_total", "action"),), width=12, stack=True),
                Panel("Decisions by phase", "Whether the prompt or the reply led to it; none: nothing was done.", "reqps", (rate("interlock_decisions_total", "phase"),), width=12, stack=True),
            ),
        ),
        Row(
            "Rules",
            (
                Panel("Matches of enforced rules", "Once per choice.", "reqps", (Query('sum by (rule, action) (rate(interlock_rule_matches_total{$S, mode="enforce", rule=~"$rule"}[$W]))', "{{rule}}: {{action}}"),), width=12),
                Panel("Matches of rules in shadow", "What they would have done, had they been enforced. Look at these before you enforce them.", "reqps", (Query('sum by (rule, action) (rate(interlock_rule_matches_total{$S, mode="shadow", rule=~"$rule"}[$W]))', "{{rule}}: {{action}}"),), width=12),
            ),
        ),
        Row(
            "What it costs",
            (
                Panel("Tokens delivered before a block", "What the client already had when a reply was blocked. Holdback delivers fewer.", "short", quantiles("interlock_block_delivered_tokens", of=(0.5, 0.95)), red_above=16),
                Panel("Holdback", "How long tokens of streams are held before they may leave.", "s", quantiles("interlock_stream_holdback_seconds", of=(0.5, 0.95))),
                Panel("Steered tokens", "Response tokens fed under a steering vector.", "short", (rate("interlock_steered_tokens_total", "vector"),)),
                Panel("Scoring and deciding", "On the host, by step. The objective is 5 ms for 99 of 100.", "s", quantiles("interlock_decision_duration_seconds"), red_above=0.005),
                Panel("Overhead by stage", "Mean time: capture and steer in a forward pass of the model; score and decide of each choice and step.", "s", (Query("sum by (stage) (rate(interlock_monitor_overhead_seconds_sum{$S}[$W])) / sum by (stage) (rate(interlock_monitor_overhead_seconds_count{$S}[$W]) > 0)", "{{stage}}"),)),
                Panel("Steps over budget", "Decisions that took longer than the policy's `budget`: their rules' on_error says what followed.", "short", (Query("sum(rate(interlock_decisions_over_budget_total{$S}[$W]))", "steps"),)),
            ),
        ),
    ),
    ("rule",),
)

MONITORS: Final = Board(
    "interlock-monitors",
    "Interlock / Monitors and drift",
    "Whether monitors work, and whether what they see is still what they were calibrated on.",
    (
        Row(
            "Scores",
            (
                Panel("Highest score of each request", "How requests spread over scores, of the monitors that are picked above.", "short", (Query('sum by (le) (increase(interlock_monitor_score_bucket{$S, monitor=~"$monitor"}[$W]))', "{{le}}"),), "heatmap", 12),
                Panel("Quantiles of the highest score", "Of each monitor and phase.", "short", (Query('histogram_quantile(0.5, sum by (le, monitor, scope) (rate(interlock_monitor_score_bucket{$S, monitor=~"$monitor"}[$W])))', "p50 {{monitor}} {{scope}}"), Query('histogram_quantile(0.99, sum by (le, monitor, scope) (rate(interlock_monitor_score_bucket{$S, monitor=~"$monitor"}[$W])))', "p99 {{monitor}} {{scope}}")), width=12),
            ),
        ),
        Row(
            "Do they work",
            (
                Panel("Tokens scored", "Beside the tokens fed. A monitor at 0 while tokens are fed guards nothing.", "short", (Query('sum by (monitor) (rate(interlock_monitor_tokens_scored_total{$S, monitor=~"$monitor"}[$W]))', "{{monitor}}"), Query("sum(rate(interlock_tokens_total{$S}[$W]))", "tokens fed"))),
                Panel("Choices not judged", "By monitor and why.", "short", (Query('sum by (monitor, reason) (rate(interlock_monitor_skipped_total{$S, monitor=~"$monitor"}[$W]))', "{{monitor}} {{reason}}"),)),
                Panel("Breakers", "0: listened to; 1: one request tries; 2: left alone.", "short", (Query('max by (monitor) (interlock_monitor_breaker_state{$S, monitor=~"$monitor"})', "{{monitor}}"),), red_above=1.5),
                Panel("Canaries", "1: the monitor's stored prompts score as they did when it was calibrated.", "short", (Query('min by (monitor) (interlock_monitor_canary_ok{$S, monitor=~"$monitor"})', "{{monitor}}"),), red_below=1),
                Panel("Monitors in force", "Kind and version, and on how many servers.", "short", (Query("count by (monitor, kind, version) (interlock_monitor_info{$S})", "{{monitor}} {{kind}} {{version}}"),), width=16),
            ),
        ),
        Row(
            "Drift from the calibration",
            (
                Panel("Alarms", "1: out of what the calibration allows. See docs/drift.md for what each one looks at.", "short", (Query('max by (monitor, scope, alarm) (interlock_monitor_drift_alarm{$S, monitor=~"$monitor"})', "{{monitor}} {{scope}} {{alarm}}"),), red_above=0.5),
                Panel("Population stability index", "Of a request's highest score; above 0.25 is much, if it is not chance: see beside.", "short", (Query('max by (monitor, scope) (interlock_monitor_psi{$S, monitor=~"$monitor"})', "{{monitor}} {{scope}}"),), red_above=0.25),
                Panel("Chance of such a difference", "Of a Kolmogorov-Smirnov distance as large as this, if nothing drifts.", "percentunit", (Query('min by (monitor, scope) (interlock_monitor_ks_p_value{$S, monitor=~"$monitor"})', "{{monitor}} {{scope}}"),)),
                Panel("Requests above the threshold", "Share of the last 1,000, beside the rate that was certified.", "percentunit", (Query('max by (monitor, scope) (interlock_monitor_exceedance_ratio{$S, monitor=~"$monitor"})', "{{monitor}} {{scope}}"),)),
                Panel("Evidence of a raised rate", "log10 of a likelihood ratio: 3 is a thousand to one.", "short", (Query('max by (monitor, scope) (interlock_monitor_drift_evidence{$S, monitor=~"$monitor"})', "{{monitor}} {{scope}}"),)),
                Panel("Norm of the residual stream", "How far its mean logarithm is from the calibration's, in standard deviations: another model, layer or precision shows here.", "short", (Query("max by (hook_point) (interlock_residual_norm_shift{$S})", "{{hook_point}}"),)),
            ),
        ),
    ),
    ("monitor",),
)

ENGINE: Final = Board(
    "interlock-engine",
    "Interlock / Engine",
    "How busy it is, and how fast.",
    (
        Row(
            "Load",
            (
                Panel("Responses", "Being generated, and waiting in line or for a row.", "short", (Query("sum(interlock_requests_running{$S})", "running"), Query("sum(interlock_requests_waiting{$S})", "waiting"))),
                Panel("KV cache", "Filled share.", "percentunit", (Query("max by (instance) (interlock_kv_cache_usage_ratio{$S})", "{{instance}}"),)),
                Panel("Step", "How long a step has been running or due. At 30 s the server is not ready.", "s", (Query("max by (instance) (interlock_engine_step_age_seconds{$S})", "{{instance}}"),), red_above=30),
                Panel("Tokens", "Fed to the model.", "short", (rate("interlock_tokens_total", "type"),)),
                Panel("Waiting in line", "Of requests that got a place.", "s", quantiles("interlock_request_queue_seconds")),
                Panel("Places taken", "Of the line, by responses that run or are being sent.", "short", (Query("sum by (instance) (interlock_places_taken{$S})", "{{instance}}"),)),
            ),
        ),
        Row(
            "Latency",
            (
                Panel("Time to first token", "From admission to the first token that may leave.", "s", quantiles("interlock_time_to_first_token_seconds")),
                Panel("Between tokens", "Between consecutive scored tokens of a choice.", "s", quantiles("interlock_inter_token_latency_seconds")),
                Panel("Whole choices", "From admission to the end.", "s", quantiles("interlock_request_duration_seconds")),
            ),
        ),
        Row(
            "Clients and host",
            (
                Panel("Clients that left", "Went away, took nothing for too long, or ran into the deadline.", "short", (Query("sum(rate(interlock_client_disconnects_total{$S}[$W]))", "went away"), Query("sum(rate(interlock_stream_stalls_total{$S}[$W]))", "took nothing"), Query("sum(rate(interlock_deadlines_exceeded_total{$S}[$W]))", "deadline"))),
                Panel("Event loop", "How late it wakes who asked to be woken: whatever holds it up holds up every request.", "s", quantiles("interlock_event_loop_lag_seconds", of=(0.5, 0.99))),
                Panel("HTTP answers", "By status.", "reqps", (rate("interlock_http_requests_total", "code"),), stack=True),
                Panel("Memory", "Resident, of the process.", "bytes", (Query("sum by (instance) (process_resident_memory_bytes{$S})", "{{instance}}"),)),
                Panel("Open files", "Sockets included.", "short", (Query("sum by (instance) (process_open_fds{$S})", "{{instance}}"),)),
                Panel("CPU", "Cores in use.", "short", (Query("sum by (instance) (rate(process_cpu_seconds_total{$S}[$W]))", "{{instance}}"),)),
            ),
        ),
    ),
)

POLICY: Final = Board(
    "interlock-policy",
    "Interlock / Policy and audit",
    "Whether what is on disk is in force, and whether decisions are recorded.",
    (
        Row(
            "Files",
            (
                Panel("Policy on disk in force", "0: what is on disk is wrong, and the last good policy goes on.", "short", (Query("min by (instance) (interlock_policy_last_reload_successful{$S})", "{{instance}}"),), red_below=1),
                Panel("Reloads of the policy", "By result, in the window.", "short", (Query("sum by (result) (increase(interlock_policy_reloads_total{$S}[$W]))", "{{result}}"),)),
                Panel("Last reload", "How long ago the policy in force was loaded.", "s", (Query("max by (instance) (time() - interlock_policy_last_reload_success_timestamp_seconds{$S})", "{{instance}}"),)),
                Panel("Keys on disk in force", "0: what is on disk is wrong, and a key that was revoked there may still count.", "short", (Query("min by (instance) (interlock_keys_last_reload_successful{$S})", "{{instance}}"),), red_below=1),
                Panel("Exceptions", "How long until each expires.", "s", (Query("min by (exception) (interlock_policy_exception_expiry_timestamp_seconds{$S} - time())", "{{exception}}"),)),
                Panel("Overridden gates", "Enforced rules that go without the evidence that is asked for, by their written override.", "short", (Query("max by (rule, gate) (interlock_rule_overrides{$S})", "{{rule}} {{gate}}"),)),
            ),
        ),
        Row(
            "Decision log",
            (
                Panel("Records", "Written, by the second.", "short", (Query("sum(rate(interlock_audit_records_total{$S}[$W]))", "records"),)),
                Panel("Lost", "Records that could not be written, and errors of the disk.", "short", (Query("sum(increase(interlock_audit_dropped_total{$S}[$W]))", "dropped"), Query("sum(increase(interlock_audit_write_errors_total{$S}[$W]))", "write errors")), red_above=1e-9),
                Panel("Queue", "Records that wait to be written.", "short", (Query("max by (instance) (interlock_audit_queue_length{$S})", "{{instance}}"),)),
            ),
        ),
        Row(
            "Requests",
            (
                Panel("Unknown fields", "That no endpoint knows, accepted and ignored.", "short", (Query("sum(rate(interlock_request_unknown_fields_total{$S}[$W]))", "fields"),), width=12),
                Panel("Refused for their key", "By why.", "reqps", (rate("interlock_auth_failures_total", "reason"),), width=12),
            ),
        ),
    ),
)

BOARDS: Final = (OVERVIEW, DECISIONS, MONITORS, ENGINE, POLICY)
