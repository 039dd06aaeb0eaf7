"""A real Prometheus, the shipped rules, a server in which things fail: the right alerts fire, and none where all is well.

Only how long an alert waits is shortened; what it asks is as shipped.
"""

import os
import re

import httpx
import pytest

from deploy.prometheus.generate import OUT as RULES
from server.auditing.writer import AuditLog, LogSettings
from server.engines.scripted import Script
from tests.deploy.live import PROMETHEUS, alerts, prometheus
from tests.e2e.conftest import scores
from tests.waiting import until

pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian: prometheus)")

POLICY = """
apiVersion: interlock/v1
kind: Policy
metadata: {name: alerts, version: "1"}
rules:
  - {id: strict, when: max(prompt.harm) > 0.5, then: {block: {}}}
  - {id: lenient, when: max(response.deception) > 0.5, on_error: open, then: {annotate: {}}}
tests:
  - {name: t, given: {prompt: {harm: "0.9"}}, expect: {action: block}}
"""
NAN = {"harm": [float("nan")] * 2000, "deception": [float("nan")] * 2000}


@pytest.fixture
def rules(tmp_path):
    hasty = tmp_path / "rules.yml"
    hasty.write_text(re.sub(r"^(\s+for): .*$", r"\1: 1s", RULES.read_text(), flags=re.MULTILINE))
    return hasty


def ask(live, times=3):
    return [
        live.http.post(
            "/v1/chat/completions", json={"model": live.model, "messages": [{"role": "user", "content": "x"}]}
        ).status_code
        for _ in range(times)
    ]


def watched(live, tmp_path, rules):
    return prometheus(tmp_path / "prometheus", httpx.URL(live.url).port, rules)


def test_nothing_fires_where_all_is_well(serve, tmp_path, rules):
    live = serve(POLICY, Script(["a", "b"], scores(), scores()), expose_metrics=True)
    with watched(live, tmp_path, rules) as asked:
        until(lambda: is_scraped(asked))
        for _ in range(4):
            assert ask(live) == [200] * 3
            before = evaluations(asked)
            until(lambda before=before: evaluations(asked) >= before + 2)
        assert set(alerts(asked)) == set()


def test_what_fails_is_told_and_what_goes_on_unguarded(serve, tmp_path, rules):
    """Monitors give nothing: one rule fails closed, one open. The policy on disk is broken, the log's disk is full."""

    def full(*_):
        raise OSError(28, os.strerror(28))

    log = AuditLog(tmp_path / "full.jsonl", LogSettings(on_full="open"), write=full)
    played = iter([NAN, scores()] * 10_000)
    live = serve(
        POLICY,
        lambda _: Script(["a", "b"], next(played), NAN),
        expose_metrics=True,
        service_options={"audit": log},
    )
    live.service.metrics.audit.watch(log)
    live.service.policies._sources.policy.write_text("rules: [")
    with watched(live, tmp_path, rules) as asked:
        until(lambda: is_scraped(asked))
        with pytest.raises(Exception, match="rules"):
            live.reload()
        seen = set()
        expected = {
            "InterlockFailingOpen",
            "InterlockMonitorErrors",
            "InterlockCoverageBurn",
            "InterlockErrorBudgetBurnFast",
            "InterlockPolicyReloadFailed",
            "InterlockAuditDropping",
        }

        def all_fire():
            seen.update(ask(live, 4))  # at last only 503: the monitor is left alone
            return expected <= set(alerts(asked))

        until(all_fire, 120)
        assert seen == {200, 503}
        for name in expected:
            assert alerts(asked)[name]["annotations"]["runbook_url"].endswith(f"{name}.md")


def is_scraped(asked):
    return asked.get("/api/v1/query", params={"query": "interlock_ready"}).json()["data"]["result"] != []


def evaluations(asked):
    """How often the rules were looked at."""
    counted = re.findall(
        r"^prometheus_rule_group_iterations_total\S* (\S+)$", asked.get("/metrics").text, re.MULTILINE
    )
    return sum(map(float, counted))
