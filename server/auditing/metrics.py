"""Metrics of the decision log."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from server.auditing.writer import AuditLog


class AuditMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(f"interlock_audit_{name}", text, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"interlock_audit_{name}", text, registry=registry)

        self.records = counter("records_total", "Decision records written.")
        self.dropped = counter(
            "dropped_total", "Decision records lost because the queue was full or the disk failed."
        )
        self.errors = counter(
            "write_errors_total", "Attempts to write the decision log that the disk refused."
        )
        self._queue = gauge("queue_length", "Decision records that are not written yet.")
        self._age = gauge(
            "last_write_age_seconds",
            "Seconds since a decision record was written; meaningful while records are queued.",
        )
        self._writable = gauge("writable", "1 if decision records can be written.")

    def watch(self, log: AuditLog) -> None:
        """Read the log's state at every scrape."""
        self._queue.set_function(lambda: log.queued)
        self._age.set_function(lambda: log.last_write_age_s)
        self._writable.set_function(lambda: log.trouble is None)
