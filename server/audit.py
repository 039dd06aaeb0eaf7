"""The decision log: one JSON line per choice, written by a thread of its own, so that a slow disk never holds a token."""

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import structlog

_log = structlog.get_logger()
_END = None


class AuditLog:
    """Appends records to a file. Where the queue is full or the disk fails, records are dropped and counted, never waited for."""

    def __init__(
        self,
        path: Path,
        *,
        on_written: Callable[[], None] = lambda: None,
        on_dropped: Callable[[], None] = lambda: None,
        max_queued: int = 10_000,
    ) -> None:
        """Raises OSError if the file can't be opened for appending."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(max_queued)
        self._on_written = on_written
        self._on_dropped = on_dropped
        self._thread = threading.Thread(target=self._write_all, name="interlock-audit", daemon=True)
        self._thread.start()

    def write(self, record: dict[str, Any]) -> None:
        """Queue a record. Never blocks."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._on_dropped()

    def close(self) -> None:
        """Write what is queued, then close the file."""
        self._queue.put(_END)
        self._thread.join()
        self._file.close()

    def _write_all(self) -> None:
        while (record := self._queue.get()) is not _END:
            try:
                self._file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
                if self._queue.empty():
                    self._file.flush()
            except (OSError, orjson.JSONEncodeError) as error:
                self._on_dropped()
                _log.error("a decision record was lost", error=type(error).__name__)
            else:
                self._on_written()
        self._file.flush()
