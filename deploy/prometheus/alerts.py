"""The alerts: when each fires, how long it waits, whom it wakes. Their pages are docs/runbooks/<name>.md."""

from dataclasses import dataclass
from typing import Final, Literal

Severity = Literal["critical", "warning", "info"]  # page; look at it today; for the record


@dataclass(frozen=True, slots=True)
class Alert:
    name: str
    expr: str
    severity: Severity
    summary: str  # what is wrong, in one line
    description: str  # what it means, with numbers
    dashboard: str  # the uid of the one to look at
    wait: str = "0m"
    keep: str = ""  # keep_firing_for


AVAILABILITY: Final = 0.999
COVERAGE: Final = 0.9999


def burning(sli: str, budget: float, *pairs: tuple[float, str, str]) -> str:
    """Whether an error budget burns by one of several rates: (rate, long window, short window)."""
    parts = (
        f"(job:interlock_{sli}:ratio_rate{long} > {rate * budget:.6g} and job:interlock_{sli}:ratio_rate{short} > {rate * budget:.6g})"
        for rate, long, short in pairs
    )
    return " or ".join(parts)


FAST: Final = ((14.4, "1h", "5m"), (6.0, "6h", "30m"))
SLOW: Final = ((3.0, "1d", "2h"), (1.0, "3d", "6h"))

ALERTS: Final = (
    # --- the guard does not guard
    Alert(
        "InterlockLeakPrevented",
        "increase(interlock_leaks_prevented_total[10m]) > 0",
        "critical",
        "A token was about to leave before it was scored",
        "The run-time check stopped it, so nothing leaked; but it must never be needed. This is a bug of Interlock's.",
        "interlock-decisions",
        keep="30m",
    ),
    Alert(
        "InterlockFailingOpen",
        'sum without (component) (increase(interlock_failures_total{disposition="open"}[5m])) > 0',
        "critical",
        "Requests go on unguarded",
        "{{ $value | humanize }} failures in 5 minutes let a request go on, because something is set to fail open.",
        "interlock-overview",
        keep="10m",
    ),
    Alert(
        "InterlockCoverageBurn",
        burning("uncovered", 1 - COVERAGE, *FAST),
        "critical",
        "Monitors miss tokens",
        "{{ $value | humanizePercentage }} of requests had a token that a needed monitor did not score; 0.01 % are the objective.",
        "interlock-monitors",
    ),
    Alert(
        "InterlockMonitorSilent",
        "rate(interlock_monitor_tokens_scored_total[10m]) == 0 and on (job, instance) sum by (job, instance) (rate(interlock_tokens_total[10m])) > 1",
        "critical",
        "The monitor {{ $labels.monitor }} scores nothing",
        "Tokens are fed and it scored none of them in 10 minutes. Rules that read it do not guard.",
        "interlock-monitors",
        wait="5m",
    ),
    Alert(
        "InterlockCanaryFailed",
        "interlock_monitor_canary_ok == 0",
        "critical",
        "The monitor {{ $labels.monitor }} does not give the scores that it was calibrated with",
        "Its stored prompts score differently on this engine: the wrong model, layer, precision or template.",
        "interlock-monitors",
        wait="2m",
    ),
    Alert(
        "InterlockMonitorErrors",
        'sum without (reason) (rate(interlock_monitor_skipped_total{reason!="shed"}[5m])) > 0',
        "warning",
        "The monitor {{ $labels.monitor }} fails",
        "{{ $value | humanize }} choices a second could not be judged by it. Its rules follow their on_error.",
        "interlock-monitors",
        wait="5m",
    ),
    Alert(
        "InterlockBreakerOpen",
        "interlock_monitor_breaker_state == 2",
        "warning",
        "The monitor {{ $labels.monitor }} is left alone",
        "It failed so often that requests don't wait for it any more. Rules that fail closed refuse them at once.",
        "interlock-monitors",
        wait="2m",
    ),
    Alert(
        "InterlockScoreDrift",
        "interlock_monitor_drift_alarm == 1",
        "warning",
        "Scores of {{ $labels.monitor }} ({{ $labels.scope }}) drift: {{ $labels.alarm }}",
        "Production differs from what the monitor was calibrated on, so its false-positive rate is not known any more.",
        "interlock-monitors",
        wait="15m",
    ),
    # --- what the guard does changes
    Alert(
        "InterlockBlockRateJump",
        "job:interlock_blocked:ratio_rate1h > 0.01 and job:interlock_blocked:ratio_rate1h > 3 * (job:interlock_blocked:ratio_rate1h offset 1w)",
        "warning",
        "Three times as much is blocked as a week ago",
        "{{ $value | humanizePercentage }} of requests were blocked or replaced in the last hour.",
        "interlock-decisions",
        wait="15m",
    ),
    Alert(
        "InterlockShadowWouldBlock",
        'sum by (job, rule) (rate(interlock_rule_matches_total{mode="shadow", action=~"block|replace"}[1h])) > on (job) group_left () 0.02 * sum by (job) (rate(interlock_requests_total[1h]))',
        "info",
        "The rule {{ $labels.rule }} would block more than 2 % of requests",
        "It runs in shadow and blocks nothing yet. Look at what it matches before it is enforced.",
        "interlock-decisions",
        wait="30m",
    ),
    Alert(
        "InterlockDeliveredTokensHigh",
        "histogram_quantile(0.95, sum without (instance) (rate(interlock_block_delivered_tokens_bucket[1h]))) > 16",
        "warning",
        "Replies are blocked late",
        "The client already had {{ $value | humanize }} tokens (95th percentile) when a reply was blocked. More holdback delivers fewer.",
        "interlock-decisions",
        wait="15m",
    ),
    Alert(
        "InterlockOverheadHigh",
        "histogram_quantile(0.99, sum without (instance, phase) (rate(interlock_decision_duration_seconds_bucket[10m]))) > 0.005",
        "warning",
        "Deciding is slow",
        "Scoring and deciding take {{ $value | humanizeDuration }} a step (99th percentile); 5 ms are the objective.",
        "interlock-decisions",
        wait="10m",
    ),
    # --- the service
    Alert(
        "InterlockErrorBudgetBurnFast",
        burning("unavailable", 1 - AVAILABILITY, *FAST),
        "critical",
        "Requests fail or are refused",
        "{{ $value | humanizePercentage }} of requests end in an error or are shed; at this rate the month's budget is gone within days.",
        "interlock-overview",
    ),
    Alert(
        "InterlockErrorBudgetBurnSlow",
        burning("unavailable", 1 - AVAILABILITY, *SLOW),
        "warning",
        "Requests fail or are refused, slowly",
        "{{ $value | humanizePercentage }} of requests end in an error or are shed, over days.",
        "interlock-overview",
    ),
    Alert(
        "InterlockEngineStalled",
        "interlock_engine_step_age_seconds > 30",
        "critical",
        "The model makes no progress",
        "A step has been running, or due, for {{ $value | humanizeDuration }}. The server is not ready, and is restarted if it does not recover.",
        "interlock-engine",
    ),
    Alert(
        "InterlockQueueSaturated",
        'sum without (model) (interlock_requests_waiting) > 0 and on (job, instance) sum by (job, instance) (rate(interlock_shed_total{reason=~"queue_full|queue_timeout"}[5m])) > 0',
        "warning",
        "More is asked for than can be served",
        "{{ $value }} responses wait, and others are refused.",
        "interlock-engine",
        wait="10m",
    ),
    Alert(
        "InterlockTargetDown",
        'up{job=~".*interlock.*"} == 0 or absent(up{job=~".*interlock.*"})',
        "critical",
        "A server is not scraped",
        "Prometheus gets no metrics of {{ $labels.instance }}: it is down, or the key of the scrape does not count any more.",
        "interlock-overview",
        wait="3m",
    ),
    # --- files
    Alert(
        "InterlockPolicyReloadFailed",
        "interlock_policy_last_reload_successful == 0",
        "warning",
        "The policy on disk is not in force",
        "What is on disk is wrong, and the last good policy goes on. The server's log says what is wrong, with file and line.",
        "interlock-policy",
        wait="5m",
    ),
    Alert(
        "InterlockKeysReloadFailed",
        "interlock_keys_last_reload_successful == 0",
        "critical",
        "The key file on disk is not in force",
        "A key that was revoked there may still count. The server's log says what is wrong, with file and line.",
        "interlock-policy",
        wait="2m",
    ),
    Alert(
        "InterlockTlsReloadFailed",
        "interlock_tls_last_reload_successful == 0",
        "warning",
        "The certificate on disk is not shown by the {{ $labels.port }} port",
        "The last good one goes on until it expires.",
        "interlock-policy",
        wait="5m",
    ),
    Alert(
        "InterlockPolicyVersionSkew",
        "count by (job) (count by (job, digest12) (interlock_policy_info)) > 1",
        "warning",
        "Replicas run different policies",
        "{{ $value }} policies are in force at once, for longer than a rollout takes.",
        "interlock-policy",
        wait="5m",
    ),
    Alert(
        "InterlockExceptionExpiring",
        "0 < interlock_policy_exception_expiry_timestamp_seconds - time() < 7 * 86400",
        "info",
        "The exception {{ $labels.exception }} expires in {{ $value | humanizeDuration }}",
        "Then the rules that it takes back hold again.",
        "interlock-policy",
        wait="1h",
    ),
    Alert(
        "InterlockAuditDropping",
        "increase(interlock_audit_dropped_total[5m]) > 0 or interlock_audit_writable == 0",
        "critical",
        "Decisions are not recorded",
        "The decision log can't be written: requests are refused, or go on without a record, as audit_on_full says.",
        "interlock-policy",
        keep="10m",
    ),
)
