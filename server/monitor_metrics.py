"""Whether monitors work, as metrics."""

from prometheus_client import CollectorRegistry, Gauge

from server.breaker import BreakerState


class MonitorMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._canary_ok = Gauge(
            "interlock_monitor_canary_ok",
            "1 if the monitor gives its canaries the scores it was calibrated with, on this engine.",
            ("monitor",),
            registry=registry,
        )
        self._breaker = Gauge(
            "interlock_monitor_breaker_state",
            "0: closed, the monitor is listened to; 1: half open, it is being tried; 2: open, it is left alone.",
            ("monitor",),
            registry=registry,
        )

    def expect(self, monitor: str) -> None:
        """Create the series of a monitor that rules read."""
        self._breaker.labels(monitor)

    def checked(self, monitor: str, passed: bool) -> None:  # noqa: FBT001  # as the canaries tell
        self._canary_ok.labels(monitor).set(passed)

    def breaker_is(self, monitor: str, state: BreakerState) -> None:
        self._breaker.labels(monitor).set(state)
