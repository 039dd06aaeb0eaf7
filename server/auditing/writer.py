"""The decision log as the server sees it: a bounded queue, and a thread that hashes and writes, so that a slow disk never holds a token."""

import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Literal

import structlog

from guard.types import JsonObject
from server.auditing.files import LogFiles, Rotation

_log = structlog.get_logger()
_FIRST_RETRY_S, _LAST_RETRY_S = 0.1, 5.0
OnFull = Literal["closed", "open"]


@dataclass(frozen=True, slots=True)
class LogSettings:
    """How the log is kept. `closed`: while it can't be written, no request is admitted. `open`: records are dropped."""

    on_full: OnFull = "closed"
    max_queued: int = 10_000  # records
    fsync_s: float = 1.0  # at most this long between a record and its fdatasync; 0: after each
    stalled_s: float = 5.0  # a write that takes longer means that the disk is stuck
    rotation: Rotation = field(default_factory=Rotation)


def _ignore() -> None: ...


def _ignore_record(_: JsonObject) -> None: ...


class AuditLog:
    """Takes records from the event loop and appends them to the files, trying again until the disk takes them.

    `closed` drops nothing while the process lives: what was admitted is kept until it is written, and `refuses` says
    when to admit no more. `open` drops allowed replies beyond `max_queued`, and everything beyond twice that.
    """

    def __init__(
        self,
        path: Path,
        settings: LogSettings | None = None,
        *,
        on_written: Callable[[], None] = _ignore,
        on_dropped: Callable[[JsonObject], None] = _ignore_record,
        on_error: Callable[[], None] = _ignore,
        clock: Callable[[], float] = monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        write: Callable[[int, bytes], int] = os.write,
    ) -> None:
        """Raises AuditError where the file can't be opened, or belongs to another process."""
        self.settings = settings or LogSettings()
        self._files = LogFiles(path, self.settings.rotation, now=now, write=write)
        self._on_written, self._on_dropped, self._on_error = on_written, on_dropped, on_error
        self._clock = clock
        self._records: deque[JsonObject] = deque()  # the first one is being written
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._error: str | None = None
        self._busy_since: float | None = None
        self._unsynced_since: float | None = None
        self._last_write = clock()
        self._thread = threading.Thread(target=self._run, name="interlock-audit", daemon=True)
        self._thread.start()

    # --- the event loop's side -------------------------------------------------------------------------------------

    def write(self, record: JsonObject) -> None:
        """Queue a record. Never blocks."""
        with self._changed:
            if not self._closing.is_set() and self._has_room(record):
                self._records.append(record)
                self._changed.notify()
                return
        self._on_dropped(record)

    def _has_room(self, record: JsonObject) -> bool:
        if self.settings.on_full == "closed":
            return True  # bounded by the requests in flight, since no more are admitted
        share = 1 if record.get("action") == "allow" else 2
        return len(self._records) < share * self.settings.max_queued

    @property
    def queued(self) -> int:
        """Records that are not written yet."""
        return len(self._records)

    @property
    def last_write_age_s(self) -> float:
        """Seconds since a record was written, or since the start."""
        return self._clock() - self._last_write

    @property
    def trouble(self) -> str | None:
        """Why records can't be written right now. None: they can."""
        busy_since = self._busy_since
        if self._error is not None:
            return self._error
        if not self._thread.is_alive():
            return "its writer has stopped"
        if busy_since is not None and self._clock() - busy_since > self.settings.stalled_s:
            return "the disk does not answer"
        return "the queue is full" if self.queued >= self.settings.max_queued else None

    @property
    def refuses(self) -> bool:
        """Whether no request may be admitted now."""
        return self.settings.on_full == "closed" and self.trouble is not None

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what is queued. What a broken or stuck disk has not taken by then is lost, and counted."""
        with self._changed:
            self._closing.set()
            self._changed.notify()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            _log.error("decision records were lost: the disk does not answer", records=self.queued)
            for record in list(self._records):
                self._on_dropped(record)

    # --- the thread's side -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (record := self._first()) is not None:
            self._put_on_disk(record)
            with self._changed:
                self._records.popleft()
            if self._until_sync() == 0:
                self._sync()
        self._sync()
        self._files.close()

    def _first(self) -> JsonObject | None:
        """The next record, left in the queue; None: the log is closed and all is written."""
        while True:
            with self._changed:
                if not self._records and not self._closing.is_set():
                    self._changed.wait(self._until_sync())
                if self._records:
                    return self._records[0]
                if self._closing.is_set():
                    return None
            if self._until_sync() == 0:
                self._sync()

    def _put_on_disk(self, record: JsonObject) -> None:
        """Try until the record is written; when the log is being closed, once."""
        pause = _FIRST_RETRY_S
        while True:
            try:
                written = self._try(lambda: self._files.append(record))
            except TypeError:  # JSON can't hold it: trying again would not help
                break
            if written:
                self._last_write = self._clock()
                if self._unsynced_since is None:
                    self._unsynced_since = self._last_write
                self._on_written()
                return
            if self._closing.wait(pause):
                break
            pause = min(2 * pause, _LAST_RETRY_S)
        _log.error("a decision record was lost", decision_id=record.get("decision_id"))
        self._on_dropped(record)

    def _until_sync(self) -> float | None:
        """Seconds until the next fdatasync is due; None: there is nothing to sync."""
        if self._unsynced_since is None:
            return None
        return max(0.0, self._unsynced_since + self.settings.fsync_s - self._clock())

    def _sync(self) -> None:
        # after a failure, try again one pause later: requests may be refused until it succeeds
        failed_until = self._clock() + _FIRST_RETRY_S
        self._unsynced_since = None if self._try(self._files.sync) else failed_until

    def _try(self, action: Callable[[], None]) -> bool:
        """Whether the disk did it. What went wrong is told once, and shown as `trouble` until something works."""
        self._busy_since = self._clock()
        try:
            action()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            if self._error is None:
                _log.error("the decision log can't be written", reason=reason)
            self._error = reason or type(error).__name__
            self._on_error()
            return False
        finally:
            self._busy_since = None
        if self._error is not None:
            _log.info("the decision log can be written again")
            self._error = None
        return True
