"""The chain on disk: how a record becomes a line, how a line is read, and where a file's chain ends.

Every record names the hash of the one before it (`prev`) and its own place (`seq`, from 1). Both go on over rotations
and restarts. What a killed process left unfinished stays in the file, and the next record vouches for it: `torn`.
"""

import mmap
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import orjson

from guard.audit import chained
from guard.types import JsonObject
from server.auditing.errors import AuditError


@dataclass(frozen=True, slots=True)
class Link:
    """A record as its successor knows it."""

    hash: str
    seq: int


START = Link("", 0)  # what the first record of a log follows


@dataclass(frozen=True, slots=True)
class Torn:
    """Bytes that are no record: what an interrupted write left. `hash` is of the lines without the last line's end."""

    lines: int
    num_bytes: int
    hash: str

    @classmethod
    def of(cls, data: bytes) -> "Torn":
        return cls(data.count(b"\n") + 1, len(data), f"sha256:{sha256(data).hexdigest()}")


@dataclass(frozen=True, slots=True)
class Tail:
    """Where a file's chain ends."""

    link: Link | None = None  # the last record; None: the file has none
    torn: Torn | None = None  # what follows it
    ends_line: bool = True  # the last byte is a line's end, or there is none


def to_line(record: JsonObject, after: Link, torn: Torn | None) -> tuple[bytes, Link]:
    """The line of the record that follows `after`, and its link. Raises TypeError for what JSON can't hold."""
    placed = {**record, "seq": after.seq + 1} | ({"torn": asdict(torn)} if torn else {})
    # hash what a reader will read: enums as their values, NaN as null
    linked = chained(orjson.loads(orjson.dumps(placed)), after.hash)
    return orjson.dumps(linked, option=orjson.OPT_APPEND_NEWLINE), Link(linked["hash"], linked["seq"])


def parse_line(line: bytes) -> JsonObject | None:
    """The JSON object in a line; None: there is none, so the line is torn."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def link_of(record: JsonObject) -> Link | None:
    """How the next record names this one; None: it is not part of a chain."""
    own, seq = record.get("hash"), record.get("seq")
    return Link(own, seq) if isinstance(own, str) and isinstance(seq, int) else None


def read_tail(path: Path) -> Tail:
    """Where the chain of a file ends. Raises OSError, or AuditError for a file that holds records without a chain."""
    size = path.stat().st_size
    if size == 0:
        return Tail()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        ends_line = data[size - 1] == ord("\n")
        end = stop = size - 1 if ends_line else size
        while True:
            start = data.rfind(b"\n", 0, stop) + 1
            record = parse_line(data[start:stop])
            if record is not None:
                if (link := link_of(record)) is None:
                    raise AuditError(
                        f"{path}: its last record has no hash, so the chain can't go on; move the file away"
                    )
                return Tail(link, None if stop == end else Torn.of(data[stop + 1 : end]), ends_line)
            if start == 0:
                return Tail(None, Torn.of(data[:end]), ends_line)
            stop = start - 1
