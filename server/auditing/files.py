"""The log's files: one that is appended to, and the rotated ones before it.

    decisions.jsonl                          the active file, mode 0600, locked by its one writer
    decisions-20261123T031500Z-0001.jsonl    rotated at that time; the oldest are removed beyond `keep`

Each record is one `write`, so a killed process leaves at most one unfinished line.
"""

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from guard.types import JsonObject
from server.auditing.chain import START, Link, Torn, parse_line, read_tail, to_line
from server.auditing.errors import AuditError

_log = structlog.get_logger()
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
_ROTATION_PAUSE = timedelta(minutes=1)  # after a rotation that failed


@dataclass(frozen=True, slots=True)
class Rotation:
    """When a file is closed and a new one begun."""

    max_bytes: int = 100 * 1024 * 1024
    max_age: timedelta = timedelta(days=1)  # since its first record; looked at when a record comes
    keep: int = 90  # rotated files; 0: all


def rotated_files(path: Path) -> list[Path]:
    """The rotated files of a log, oldest first."""
    return [file for _, _, file in _rotated(path)]


def _rotated(path: Path) -> list[tuple[str, int, Path]]:
    """Time, number and path of each rotated file, oldest first."""
    form = re.compile(rf"{re.escape(path.stem)}-(\d{{8}}T\d{{6}}Z)-(\d{{4,}}){re.escape(path.suffix)}")
    named = ((form.fullmatch(file.name), file) for file in path.parent.iterdir())
    return sorted((name[1], int(name[2]), file) for name, file in named if name)


class LogFiles:
    """Appends records to the chain. Methods raise OSError where the disk does, and may be called again after that."""

    def __init__(
        self,
        path: Path,
        rotation: Rotation,
        *,
        now: Callable[[], datetime],
        write: Callable[[int, bytes], int] = os.write,
    ) -> None:
        """Open or create the file, and go on where it ends. Raises AuditError."""
        self._path = path
        self._rotation = rotation
        self._now = now
        self._write = write
        self._fd = -1
        self._link = START
        self._torn: Torn | None = None  # what the next record vouches for
        self._ends_line = True
        self._size = 0
        self._is_dirty = False  # holds a part of a record whose write failed
        self._begun = now()
        self._rotation_failed: datetime | None = None  # when
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if path.exists() and not stat.S_ISREG(path.stat().st_mode):
                raise AuditError(f"decision log {path}: not a regular file")
            self._link = self._open() or self._last_rotated() or START
        except BlockingIOError as error:
            raise AuditError(
                f"decision log {path}: another process writes it; give each server its own with --audit"
            ) from error
        except OSError as error:
            raise AuditError(
                f"decision log {path}: {error.strerror}; name a file that this user may write with --audit, "
                "or start with --no-audit"
            ) from error

    def append(self, record: JsonObject) -> None:
        """Write one record. Raises OSError (nothing of it stays), or TypeError for what JSON can't hold."""
        self._follow()
        line, link = to_line(record, self._link, self._torn)
        if self._is_due(len(line)):
            self._rotate()
        self._write_whole(line if self._ends_line else b"\n" + line)
        self._link, self._torn, self._ends_line = link, None, True

    def sync(self) -> None:
        """Wait until the disk has what was written."""
        if self._fd >= 0:
            os.fdatasync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # --- opening ---------------------------------------------------------------------------------------------------

    def _open(self) -> Link | None:
        """Open the file at `path` for appending; the last record in it."""
        fd = os.open(self._path, _FLAGS, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(PermissionError):  # not ours, but writable
                os.fchmod(fd, 0o600)
            tail = read_tail(self._path)
            self._begun = _first_time(self._path) or self._now()
            self._size = os.fstat(fd).st_size
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self._torn, self._ends_line = tail.torn or self._torn, tail.ends_line
        self._is_dirty = False
        if tail.torn:
            _log.warning(
                "the decision log ends in an unfinished line; it is kept and marked", path=str(self._path)
            )
        return tail.link

    def _last_rotated(self) -> Link | None:
        links = (read_tail(file).link for file in reversed(rotated_files(self._path)))
        return next((link for link in links if link is not None), None)

    def _follow(self) -> None:
        """Be at the end of the file at `path`, whatever was done to it from outside."""
        if self._fd < 0:
            self._open()
            return
        if self._is_dirty:
            self._cut()
        here = os.fstat(self._fd)
        try:
            at_path = self._path.stat()
        except FileNotFoundError:
            change = "moved or removed"
        else:
            if not os.path.samestat(here, at_path):
                change = "replaced"
            elif here.st_size != self._size:
                change = "truncated" if here.st_size < self._size else "written by somebody else"
            else:
                return
        _log.error(
            "the decision log was changed from outside; the chain goes on", path=str(self._path), how=change
        )
        self.close()
        self._open()

    # --- writing ---------------------------------------------------------------------------------------------------

    def _write_whole(self, data: bytes) -> None:
        written = 0
        try:
            while written < len(data):
                written += self._write(self._fd, data[written:])
        except OSError:
            if written:
                self._is_dirty = True
                with contextlib.suppress(OSError):  # else before the next write
                    self._cut()
            raise
        self._size += len(data)

    def _cut(self) -> None:
        """Take back the part of a record that did get written."""
        os.ftruncate(self._fd, self._size)
        self._is_dirty = False

    # --- rotation --------------------------------------------------------------------------------------------------

    def _is_due(self, num_bytes: int) -> bool:
        now = self._now()
        if self._size == 0:
            return False
        if self._rotation_failed and abs(now - self._rotation_failed) < _ROTATION_PAUSE:
            return False
        too_large = self._size + num_bytes > self._rotation.max_bytes
        return too_large or now - self._begun >= self._rotation.max_age

    def _rotate(self) -> None:
        try:
            os.fdatasync(self._fd)
            self._path.rename(self._next_name())
        except OSError as error:  # an oversized file is better than a lost record
            _log.error("the decision log was not rotated", path=str(self._path), reason=error.strerror)
            self._rotation_failed = self._now()
            return
        self._rotation_failed = None
        self.close()
        self._open()
        with contextlib.suppress(OSError):
            _sync_folder(self._path.parent)
            self._remove_oldest()

    def _next_name(self) -> Path:
        """A name that sorts behind all others, even if the clock was set back."""
        time, number = self._now().strftime("%Y%m%dT%H%M%SZ"), 0
        for newest_time, newest_number, _ in _rotated(self._path)[-1:]:
            if newest_time >= time:
                time, number = newest_time, newest_number
        return self._path.with_name(f"{self._path.stem}-{time}-{number + 1:04}{self._path.suffix}")

    def _remove_oldest(self) -> None:
        if self._rotation.keep:
            for file in rotated_files(self._path)[: -self._rotation.keep]:
                file.unlink()


def _first_time(path: Path) -> datetime | None:
    """When the first record of a file was made."""
    with path.open("rb") as file:
        record = parse_line(file.readline()) or {}
    try:
        return datetime.fromisoformat(record["ts"])
    except (KeyError, TypeError, ValueError):
        return None


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
