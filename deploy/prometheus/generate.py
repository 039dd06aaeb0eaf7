"""Writes rules/interlock.yml, and the same as a PrometheusRule for Kubernetes. `python -m deploy.prometheus.generate`"""

from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from textwrap import indent
from typing import Any, Final

from ruamel.yaml import YAML

from deploy.prometheus.alerts import ALERTS, Alert

OUT: Final = Path(__file__).parent / "rules" / "interlock.yml"
OUT_KUBERNETES: Final = Path(__file__).parents[1] / "kubernetes/overlays/monitoring/prometheusrule.yaml"
BASE: Final = "https://interlock.example"  # where your Grafana and your copy of docs/ are: `sed` it to yours
WINDOWS: Final = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
_HEAD = "# Made by `python -m deploy.prometheus.generate`; change deploy/prometheus/alerts.py instead.\n"


def text() -> str:
    """The whole file."""
    groups = [
        {"name": "interlock-slo", "rules": list(_recorded())},
        {"name": "interlock-alerts", "rules": [_alert(alert) for alert in ALERTS]},
    ]
    yaml, out = YAML(), StringIO()
    yaml.width = 10_000
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump({"groups": groups}, out)
    return _HEAD + out.getvalue()


def kubernetes_text() -> str:
    """For Prometheus' operator."""
    head = "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: interlock\nspec:\n"
    return _HEAD + head + indent(text().removeprefix(_HEAD), "  ")


def _recorded() -> Iterator[dict[str, str]]:
    """What SLOs are measured by: numerator and denominator are added up apart."""
    for name, part in (
        ("unavailable", 'interlock_requests_total{outcome=~"error|shed"}'),
        ("uncovered", "interlock_requests_uncovered_total"),
    ):
        for window in WINDOWS:
            yield _ratio(name, part, window)
    yield _ratio("blocked", 'interlock_requests_total{outcome=~"blocked|replaced"}', "1h")


def _ratio(name: str, part: str, window: str) -> dict[str, str]:
    rate = f"sum by (job) (rate({part}[{window}])) / sum by (job) (rate(interlock_requests_total[{window}]))"
    return {"record": f"job:interlock_{name}:ratio_rate{window}", "expr": rate}


def _alert(alert: Alert) -> dict[str, Any]:
    rule: dict[str, Any] = {"alert": alert.name, "expr": alert.expr}
    if alert.wait != "0m":
        rule["for"] = alert.wait
    if alert.keep:
        rule["keep_firing_for"] = alert.keep
    return {
        **rule,
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": alert.summary,
            "description": alert.description,
            "runbook_url": f"{BASE}/docs/runbooks/{alert.name}.md",
            "dashboard_url": f"{BASE}/grafana/d/{alert.dashboard}",
        },
    }


if __name__ == "__main__":
    OUT.write_text(text())
    OUT_KUBERNETES.write_text(kubernetes_text())
