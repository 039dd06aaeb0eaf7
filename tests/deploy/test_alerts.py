"""Every alert fires on what it is for, and not on what is well; by promtool. And each is documented and asks for metrics that exist."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from deploy.prometheus.alerts import ALERTS
from deploy.prometheus.generate import OUT, WINDOWS, text
from server.drift import DriftCollector, DriftWatch
from server.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")


def at(**labels):
    return (
        "{"
        + ", ".join(f'{k}="{v}"' for k, v in {"job": "interlock", "instance": "a", **labels}.items())
        + "}"
    )


def flat(value):
    return f"{value}x200"


def growing(per_minute):
    return f"0+{per_minute}x200"


def requests(**per_minute):
    """Counters of requests by outcome. The rest of the traffic is 1,000 a minute."""
    rates = {"allowed": 1000, **per_minute}
    return {
        f"interlock_requests_total{at(model='m', endpoint='chat', outcome=outcome)}": growing(rate)
        for outcome, rate in rates.items()
    }


def uncovered(per_minute):
    return {**requests(), f"interlock_requests_uncovered_total{at(model='m')}": growing(per_minute)}


def scored(per_minute, tokens=1000):
    return {
        f"interlock_monitor_tokens_scored_total{at(monitor='harm')}": growing(per_minute),
        f"interlock_tokens_total{at(model='m', type='prompt')}": growing(tokens),
    }


def buckets(name, below, above, edges):
    """A histogram: so many observations a minute below the first edge, so many between the last two."""
    return {
        f"{name}_bucket{at(le=edge)}": growing(
            below if edge != "+Inf" and edge != edges[-2] else below + above
        )
        for edge in edges
    }


def gauge(name, value, **labels):
    return {f"{name}{at(**labels)}": flat(value)}


def counted(name, per_minute, **labels):
    return {f"{name}{at(**labels)}": growing(per_minute)}


DELIVERED = ("8", "16", "64", "+Inf")
DECIDED = ("0.001", "0.005", "0.05", "+Inf")
POLICIES = {
    f'interlock_policy_info{{job="interlock", instance="{i}", digest12="{d}"}}': flat(1)
    for i, d in ("ax", "by")
}

# by alert: what makes it fire, and the nearest thing that does not
CASES = {
    "InterlockLeakPrevented": (
        counted("interlock_leaks_prevented_total", 1),
        gauge("interlock_leaks_prevented_total", 3),
    ),
    "InterlockFailingOpen": (
        counted("interlock_failures_total", 1, component="monitor", disposition="open"),
        counted("interlock_failures_total", 9, component="monitor", disposition="closed"),
    ),
    "InterlockCoverageBurn": (uncovered(2), uncovered(0.2)),
    "InterlockMonitorSilent": (scored(0), {**scored(0, tokens=0), **scored(100)}),
    "InterlockCanaryFailed": (
        gauge("interlock_monitor_canary_ok", 0, monitor="harm"),
        gauge("interlock_monitor_canary_ok", 1, monitor="harm"),
    ),
    "InterlockMonitorErrors": (
        counted("interlock_monitor_skipped_total", 1, monitor="harm", reason="nan"),
        counted("interlock_monitor_skipped_total", 1, monitor="harm", reason="shed"),
    ),
    "InterlockBreakerOpen": (
        gauge("interlock_monitor_breaker_state", 2, monitor="harm"),
        gauge("interlock_monitor_breaker_state", 1, monitor="harm"),
    ),
    "InterlockScoreDrift": (
        gauge("interlock_monitor_drift_alarm", 1, monitor="harm", scope="prompt", alarm="psi"),
        gauge("interlock_monitor_drift_alarm", 0, monitor="harm", scope="prompt", alarm="psi"),
    ),
    "InterlockBlockRateJump": (None, None),  # a week is too long for the others' clock: see below
    "InterlockShadowWouldBlock": (
        {
            **requests(),
            **counted("interlock_rule_matches_total", 30, rule="r", mode="shadow", action="block"),
        },
        {
            **requests(),
            **counted("interlock_rule_matches_total", 30, rule="r", mode="enforce", action="block"),
        },
    ),
    "InterlockDeliveredTokensHigh": (
        buckets("interlock_block_delivered_tokens", 9, 1, DELIVERED),
        buckets("interlock_block_delivered_tokens", 99, 1, DELIVERED),
    ),
    "InterlockOverheadHigh": (
        buckets("interlock_decision_duration_seconds", 95, 5, DECIDED),
        buckets("interlock_decision_duration_seconds", 995, 5, DECIDED),
    ),
    "InterlockErrorBudgetBurnFast": (requests(error=20), requests(blocked=500, error=2)),
    "InterlockErrorBudgetBurnSlow": (requests(shed=4), requests(shed=0.5)),
    "InterlockEngineStalled": (
        gauge("interlock_engine_step_age_seconds", 31),
        gauge("interlock_engine_step_age_seconds", 5),
    ),
    "InterlockQueueSaturated": (
        {
            **gauge("interlock_requests_waiting", 9, model="m"),
            **counted("interlock_shed_total", 5, reason="queue_full"),
        },
        {
            **gauge("interlock_requests_waiting", 9, model="m"),
            **counted("interlock_shed_total", 5, reason="rate_limit"),
        },
    ),
    "InterlockTargetDown": (gauge("up", 0), gauge("up", 1)),
    "InterlockPolicyReloadFailed": (
        gauge("interlock_policy_last_reload_successful", 0),
        gauge("interlock_policy_last_reload_successful", 1),
    ),
    "InterlockKeysReloadFailed": (
        gauge("interlock_keys_last_reload_successful", 0),
        gauge("interlock_keys_last_reload_successful", 1),
    ),
    "InterlockTlsReloadFailed": (
        gauge("interlock_tls_last_reload_successful", 0, port="api"),
        gauge("interlock_tls_last_reload_successful", 1, port="api"),
    ),
    "InterlockPolicyVersionSkew": (
        POLICIES,
        dict.fromkeys((name.replace('"y"', '"x"') for name in POLICIES), flat(1)),
    ),
    "InterlockExceptionExpiring": (
        gauge("interlock_policy_exception_expiry_timestamp_seconds", 3 * 86400, exception="E1"),
        gauge("interlock_policy_exception_expiry_timestamp_seconds", 30 * 86400, exception="E1"),
    ),
    "InterlockAuditDropping": (
        counted("interlock_audit_dropped_total", 1),
        {**gauge("interlock_audit_dropped_total", 4), **gauge("interlock_audit_writable", 1)},
    ),
}


def firing(name, series, *, minute=190, times=None):
    """A promtool test: that so many alerts of a name fire; None, that none does."""
    expected = [] if times is None else [{"labels": "{}", "value": times}]
    fired = f'count(ALERTS{{alertname="{name}", alertstate="firing"}})'
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": fired, "eval_time": f"{minute}m", "exp_samples": expected}],
    }


def run(tmp_path, tests, every="1m"):
    yaml, file = YAML(), tmp_path / "tests.yml"
    yaml.dump(
        {
            "rule_files": [str(OUT)],
            "evaluation_interval": every,
            "group_eval_order": ["interlock-slo", "interlock-alerts"],
            "tests": tests,
        },
        file,
    )
    said = subprocess.run([PROMTOOL, "test", "rules", str(file)], capture_output=True, text=True, check=False)  # noqa: S603
    assert said.returncode == 0, said.stdout + said.stderr


def test_the_file_is_what_the_generator_writes():
    assert OUT.read_text() == text()


@needs_promtool
def test_promtool_has_nothing_to_say_of_the_rules():
    command = [PROMTOOL, "check", "rules", "--lint=all", "--lint-fatal", str(OUT)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert said.returncode == 0, said.stdout + said.stderr


def test_every_alert_has_a_case_and_a_page():
    names = [alert.name for alert in ALERTS]
    assert sorted(CASES) == sorted(names)
    pages = {path.stem for path in (ROOT / "docs" / "runbooks").glob("Interlock*.md")}
    assert pages == set(names)


@needs_promtool
@pytest.mark.parametrize("name", [name for name, (bad, _) in CASES.items() if bad is not None])
def test_an_alert_fires_on_what_it_is_for_and_not_on_what_is_well(tmp_path, name):
    bad, well = CASES[name]
    run(tmp_path, [firing(name, bad, times=1), firing(name, well)])


@needs_promtool
def test_blocking_three_times_as_much_as_a_week_ago_is_told(tmp_path):
    def blocked(before, now):
        series = requests()
        name = f"interlock_requests_total{at(model='m', endpoint='chat', outcome='blocked')}"
        return (
            series
            | {name: f"0+{before}x1008 {1008 * before}+{now}x40"}
            | dict.fromkeys(series, "0+10000x1048")
        )

    def test(series, times=None):
        return firing("InterlockBlockRateJump", series, minute=10 * 1030, times=times) | {"interval": "10m"}

    run(tmp_path, [test(blocked(100, 500), times=1), test(blocked(300, 500))], every="10m")


def test_what_alerts_ask_for_exists():
    families = [*Metrics(model="m").registry.collect(), *DriftCollector(DriftWatch(), dict).collect()]
    known = {name for f in families for name in (f.name, f"{f.name}_total", f"{f.name}_bucket")}
    asked = set(re.findall(r"\binterlock_\w+", " ".join(alert.expr for alert in ALERTS)))
    recorded = {"interlock_unavailable", "interlock_uncovered", "interlock_blocked"}  # job:…:ratio_rate…
    assert asked - recorded - known == set()
    windows = set(re.findall(r":ratio_rate(\w+)", " ".join(alert.expr for alert in ALERTS)))
    assert windows <= set(WINDOWS)
