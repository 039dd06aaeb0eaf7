"""An SQLite index over a folder of decision logs: which decisions there are, and where in the files their records lie.

It mirrors the folder: what was appended since the last time is added, and what rotation has removed is forgotten.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from guard.types import JsonObject
from server.auditing.chain import link_of, parse_line

_VERSION = 1
_SCHEMA = """
CREATE TABLE files (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, identity TEXT NOT NULL UNIQUE, bytes INTEGER NOT NULL) STRICT;
CREATE TABLE decisions (
    id INTEGER PRIMARY KEY,
    file INTEGER NOT NULL REFERENCES files(id) ON DELETE CASCADE,
    offset INTEGER NOT NULL, length INTEGER NOT NULL,
    ts TEXT NOT NULL, decision_id TEXT NOT NULL, choice INTEGER NOT NULL, request_id TEXT NOT NULL,
    tenant TEXT NOT NULL, key_id TEXT NOT NULL, endpoint TEXT NOT NULL, model TEXT NOT NULL,
    policy TEXT NOT NULL, policy_version TEXT NOT NULL, policy_digest TEXT NOT NULL,
    action TEXT NOT NULL, phase TEXT, token INTEGER) STRICT;
CREATE TABLE matches (
    decision INTEGER NOT NULL REFERENCES decisions(id) ON DELETE CASCADE,
    rule TEXT NOT NULL, mode TEXT NOT NULL, action TEXT NOT NULL, phase TEXT NOT NULL, token INTEGER NOT NULL) STRICT;
CREATE TABLE scores (
    decision INTEGER NOT NULL REFERENCES decisions(id) ON DELETE CASCADE,
    phase TEXT NOT NULL, monitor TEXT NOT NULL, max REAL NOT NULL) STRICT;
CREATE INDEX decisions_by_file ON decisions(file);
CREATE INDEX decisions_by_time ON decisions(ts);
CREATE INDEX decisions_by_id ON decisions(decision_id);
CREATE INDEX decisions_by_tenant ON decisions(tenant, ts);
CREATE INDEX decisions_by_action ON decisions(action, ts);
CREATE INDEX matches_by_decision ON matches(decision);
CREATE INDEX matches_by_rule ON matches(rule);
CREATE INDEX scores_by_decision ON scores(decision);
CREATE INDEX scores_by_monitor ON scores(monitor, max);
"""
_INSERT = (
    "INSERT INTO decisions (file, offset, length, ts, decision_id, choice, request_id, tenant, key_id, endpoint, model,"
    " policy, policy_version, policy_digest, action, phase, token)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id"
)
_WRONG_TYPE = (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError, OverflowError)


@dataclass(frozen=True, slots=True)
class Indexed:
    """What an update of the index did."""

    added: int = 0
    skipped: int = 0  # lines that are no decision records
    forgotten_files: int = 0


@contextlib.contextmanager
def opened(database: Path) -> Iterator[sqlite3.Connection]:
    """The index, created with mode 0600 if it is not there, rebuilt if an older version made it. Raises OSError or sqlite3.Error."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(database, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    connection = sqlite3.connect(database)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA foreign_keys=ON")
        _create(connection)
        yield connection
    finally:
        connection.close()


def update(connection: sqlite3.Connection, folder: Path) -> Indexed:
    """Bring the index up to the state of the folder, in one transaction. Raises OSError or sqlite3.Error."""
    added = skipped = 0
    seen: set[int] = set()
    with connection:
        for path in sorted(folder.glob("*.jsonl")):
            with path.open("rb") as file:
                if (identity := _identity(file)) is None:
                    continue  # empty, or not a decision log
                file_id, offset = _known_file(connection, path, identity)
                seen.add(file_id)
                file.seek(offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # being written, or torn
                    if _add(connection, file_id, offset, len(line), parse_line(line) or {}):
                        added += 1
                    else:
                        skipped += 1
                    offset += len(line)
            connection.execute("UPDATE files SET bytes = ? WHERE id = ?", (offset, file_id))
        gone = [row for row in connection.execute("SELECT id FROM files") if row[0] not in seen]
        connection.executemany("DELETE FROM files WHERE id = ?", gone)
    return Indexed(added, skipped, len(gone))


def _create(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == _VERSION:
        return
    with connection:
        for table in ("scores", "matches", "decisions", "files"):
            connection.execute(f"DROP TABLE IF EXISTS {table}")
        connection.executescript(_SCHEMA)
        connection.execute(f"PRAGMA user_version = {_VERSION}")


def _identity(file: BinaryIO) -> str | None:
    """The hash of a file's first record, by which it is known: rotation renames files."""
    links = (link_of(parse_line(line) or {}) for line in file)
    return next((link.hash for link in links if link is not None), None)


def _known_file(connection: sqlite3.Connection, path: Path, identity: str) -> tuple[int, int]:
    """A file's id, and how many of its bytes are indexed."""
    found = connection.execute("SELECT id, bytes FROM files WHERE identity = ?", (identity,)).fetchone()
    if found is not None and found[1] > path.stat().st_size:  # it was truncated: begin again
        connection.execute("DELETE FROM files WHERE id = ?", (found[0],))
        found = None
    if found is None:
        row = connection.execute(
            "INSERT INTO files (name, identity, bytes) VALUES (?, ?, 0) RETURNING id", (path.name, identity)
        ).fetchone()
        return int(row[0]), 0
    connection.execute("UPDATE files SET name = ? WHERE id = ?", (path.name, found[0]))
    return int(found[0]), int(found[1])


def _add(connection: sqlite3.Connection, file: int, offset: int, length: int, record: JsonObject) -> bool:
    """Index one record. False if it is none, or has not the form of one: somebody has written to the log."""
    try:
        values = _columns(record)
        matches = [
            (match["rule"], match["mode"], match["action"], match["phase"], match["token"])
            for match in (*record["matches"], *record["shadow"])
        ]
        scores = [
            (phase, monitor, series["max"])
            for phase, by_monitor in record["scores"].items()
            for monitor, series in by_monitor.items()
            if "max" in series
        ]
    except (KeyError, TypeError, AttributeError):
        return False
    connection.execute("SAVEPOINT record")
    try:
        (decision,) = connection.execute(_INSERT, (file, offset, length, *values)).fetchone()
        connection.executemany(
            "INSERT INTO matches VALUES (?, ?, ?, ?, ?, ?)", [(decision, *match) for match in matches]
        )
        connection.executemany(
            "INSERT INTO scores VALUES (?, ?, ?, ?)", [(decision, *score) for score in scores]
        )
    except _WRONG_TYPE:
        connection.execute("ROLLBACK TO record")
        return False
    finally:
        connection.execute("RELEASE record")
    return True


def _columns(record: JsonObject) -> list[object]:
    """The values of a row of `decisions`, in its order."""
    policy = record["policy"]
    return [
        *(record[key] for key in ("ts", "decision_id")),
        record.get("choice", 0),
        *(record[key] for key in ("request_id", "tenant", "key_id", "endpoint", "model")),
        *(policy[key] for key in ("name", "version", "digest")),
        *(record[key] for key in ("action", "phase", "token")),
    ]
