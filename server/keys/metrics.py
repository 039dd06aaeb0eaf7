"""Metrics of keys. No label names a key or a tenant."""

from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

from server.keys.store import Reason


class KeyMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.refused = Counter(
            "interlock_auth_failures_total",
            "Requests refused for their key, by why.",
            ("reason",),
            registry=registry,
        )
        for reason in get_args(Reason):
            self.refused.labels(reason)
        self.reloads = Counter(
            "interlock_keys_reloads_total", "Attempts to reload the key file.", ("result",), registry=registry
        )
        for result in ("success", "failure"):
            self.reloads.labels(result)
        self.reload_ok = Gauge(
            "interlock_keys_last_reload_successful",
            "1 if the key file on disk is the one in force.",
            registry=registry,
        )
        self.reload_ok.set(1)
