"""Questions to the index: which decisions, by time, tenant, action, rule, model, score or id."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import inf, isnan, nan
from pathlib import Path
from typing import Any

from guard.types import JsonObject
from server.auditing.chain import parse_line

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True, slots=True)
class ScoreRange:
    """A monitor's highest score in a phase (or in either, `*`) lies between `low` and `high`, both included."""

    monitor: str
    phase: str = "*"
    low: float = -inf
    high: float = inf


@dataclass(frozen=True, slots=True)
class Query:
    """All given parts must fit. Times are aware; `rule`, `tenant` and `model` are globs."""

    since: datetime | None = None
    until: datetime | None = None
    actions: Sequence[str] = ()
    rule: str | None = None  # enforced or in shadow
    tenant: str | None = None
    model: str | None = None
    decision: str | None = None  # an id, or the beginning of one
    scores: Sequence[ScoreRange] = ()
    limit: int | None = None  # the newest; None: all


# not EXISTS: the planner may answer that one decision at a time by scanning all of a monitor's scores
_RULE = "decisions.id IN (SELECT decision FROM matches WHERE rule GLOB ?)"
_SCORE = (
    "decisions.id IN (SELECT decision FROM scores WHERE monitor = ? AND max BETWEEN ? AND ? AND phase GLOB ?)"
)
_LAST_CHARACTER = chr(0x10FFFF)


def find(connection: sqlite3.Connection, folder: Path, query: Query) -> Iterator[JsonObject]:
    """The records that fit, oldest first, read from the log itself. Raises OSError or sqlite3.Error."""
    conditions = _conditions(query)
    where = " AND ".join(condition for condition, _ in conditions) or "TRUE"
    rows = connection.execute(
        "SELECT name, offset, length FROM (SELECT files.name, offset, length, ts, decisions.id AS id"  # noqa: S608  # our own words; values are bound
        f" FROM decisions JOIN files ON files.id = decisions.file WHERE {where}"
        " ORDER BY ts DESC, decisions.id DESC LIMIT ?) ORDER BY ts, id",
        (*(value for _, bound in conditions for value in bound), -1 if query.limit is None else query.limit),
    )
    for name, offset, length in rows:
        with (folder / name).open("rb") as file:
            file.seek(offset)
            if (record := parse_line(file.read(length))) is not None:
                yield record


def _conditions(query: Query) -> list[tuple[str, tuple[Any, ...]]]:
    """Each condition with the values that it binds."""
    decision = query.decision
    given: list[tuple[str, Any]] = [
        ("ts >= ?", query.since and _stamp(query.since)),
        ("ts < ?", query.until and _stamp(query.until)),
        ("decisions.action IN (SELECT value FROM json_each(?))", query.actions and json.dumps(query.actions)),
        (_RULE, query.rule),
        ("tenant GLOB ?", query.tenant),
        ("model GLOB ?", query.model),
        ("decision_id >= ?", decision),
        ("decision_id <= ?", decision and decision + _LAST_CHARACTER),
    ]
    scores = [(_SCORE, (score.monitor, score.low, score.high, score.phase)) for score in query.scores]
    return [*((condition, (value,)) for condition, value in given if value), *scores]


def _stamp(time: datetime) -> str:
    """As records spell their time, so that it sorts as text."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text: str, now: datetime) -> datetime:
    """`2026-11-22`, `2026-11-22T17:35:00Z`, or how long ago: `90s`, `15m`, `2h`, `3d`, `1w`. Raises ValueError."""
    number, unit = text[:-1], text[-1:]
    try:
        if unit in _UNITS and number.isdecimal():
            return now - timedelta(seconds=int(number) * _UNITS[unit])
        time = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise ValueError(
            f"'{text}' is no time; write 2026-11-22, 2026-11-22T17:35:00Z, or how long ago: 90s, 15m, 2h, 3d, 1w"
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def parse_bound(text: str) -> tuple[str, str, float]:
    """`harm=0.8` or `prompt.harm=0.8` -> monitor, phase (or `*`), value. Raises ValueError."""
    name, _, number = text.partition("=")
    phase, dot, monitor = name.partition(".")
    if not dot:
        phase, monitor = "*", name
    try:
        value = float(number)
    except ValueError:
        value = nan
    if not monitor or phase not in {"*", "prompt", "response"} or isnan(value):
        raise ValueError(
            f"'{text}' is no score; write monitor=number, for example harm=0.8 or prompt.harm=0.8"
        )
    return monitor, phase, value
