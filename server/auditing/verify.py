"""Walks the chain over the files of a log, and names the first record that breaks it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import orjson

from guard.audit import record_hash
from guard.types import JsonObject
from server.auditing.chain import START, Link, Torn, link_of, parse_line


@dataclass(frozen=True, slots=True)
class Place:
    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Break:
    """Where the chain breaks: `changed`, `missing`, `reordered` or `torn`."""

    place: Place
    kind: str
    why: str

    def __str__(self) -> str:
        return f"{self.place}: {self.kind}: {self.why}"


@dataclass(slots=True)
class Report:
    """What was found up to the first break. `notes` are no breaks, but worth knowing."""

    num_files: int
    num_records: int = 0
    first: JsonObject | None = None
    last: JsonObject | None = None
    notes: list[str] = field(default_factory=list)
    broken: Break | None = None


def verify(paths: Sequence[Path], *, expected_hash: str | None = None) -> Report:
    """Verify files, in whatever order they are given; `expected_hash` must be that of one of the records.

    Raises OSError, or ValueError if there is no file at all.
    """
    files = in_order(paths)
    if not files:
        raise ValueError(f"{', '.join(map(str, paths))}: no *.jsonl files there")
    lines = _lines(files)
    place: Place | None = None
    report = Report(len(files))
    after: Link | None = None
    is_expected_seen = expected_hash is None
    torn: list[tuple[Place, bytes]] = []
    for place, line in lines:
        record = parse_line(line)
        if record is None:
            torn.append((place, line))
            continue
        report.broken = _changed(place, line, record) or _torn_unmarked(torn, place, record, after)
        if report.broken is None:
            link = Link(record["hash"], record["seq"])
            if after is None:
                _note_beginning(report, place, record, link)
            else:
                report.broken = _misplaced(place, record, link, after, lines)
            after = link
        if report.broken is not None:
            return report
        if torn:
            report.notes.append(
                f"{torn[0][0]}: torn: {record['torn']['num_bytes']} bytes of an unfinished record, lost when the server was "
                "killed; the next record vouches for them"
            )
            torn = []
        report.num_records += 1
        is_expected_seen = is_expected_seen or record["hash"] == expected_hash
        report.first = report.first or record
        report.last = record
    if torn:
        why = "an unfinished record, and none after it; the server was killed while writing, or is writing it now"
        report.broken = Break(torn[0][0], "torn", why)
    elif not is_expected_seen:
        end = place or Place(files[-1], 1)
        report.broken = Break(
            end, "missing", f"the log ends here, and no record of it has the hash {expected_hash}"
        )
    return report


def in_order(paths: Iterable[Path]) -> list[Path]:
    """Files by the place of their first record; files without one come last. A folder stands for its *.jsonl."""
    files: list[Path] = []
    for path in paths:
        files += path.glob("*.jsonl") if path.is_dir() else [path]
    return sorted(dict.fromkeys(files), key=_first_seq)


def _first_seq(file: Path) -> tuple[float, str]:
    for _, line in _lines([file]):
        if (link := link_of(parse_line(line) or {})) is not None:
            return link.seq, file.name
    return float("inf"), file.name


def _lines(files: Iterable[Path]) -> Iterator[tuple[Place, bytes]]:
    for file in files:
        with file.open("rb") as opened:
            for number, line in enumerate(opened, start=1):
                yield Place(file, number), line.removesuffix(b"\n")


def _changed(place: Place, line: bytes, record: JsonObject) -> Break | None:
    if link_of(record) is None or not isinstance(record.get("prev"), str):
        return Break(place, "changed", "this is not a chained record: `prev`, `seq` or `hash` is not there")
    if _hash(record) != record["hash"]:
        return Break(place, "changed", "its content does not have the hash that it names")
    if orjson.dumps(record) != line:  # a key twice, say: two readers could see two values
        return Break(place, "changed", "it is not spelled as it was written")
    return None


def _hash(record: JsonObject) -> str | None:
    try:
        return record_hash(record)
    except RecursionError:  # nested deeper than any record of ours
        return None


def _torn_unmarked(
    torn: list[tuple[Place, bytes]], place: Place, record: JsonObject, after: Link | None
) -> Break | None:
    """Lines that are no records must be the very bytes that the next record vouches for."""
    found = asdict(Torn.of(b"\n".join(line for _, line in torn))) if torn else None
    if found == record.get("torn"):
        return None
    if torn:
        return Break(torn[0][0], "torn", "this is not a record, and the next record does not vouch for it")
    if after is None:  # it may lie in a file that was not given
        return None
    return Break(place, "missing", "the unfinished line that this record vouches for is gone")


def _note_beginning(report: Report, place: Place, record: JsonObject, link: Link) -> None:
    if record["prev"] != START.hash:
        report.notes.append(
            f"{place}: begins with record {link.seq}; the {link.seq - 1} before it are not in these files"
        )


def _misplaced(
    place: Place, record: JsonObject, link: Link, after: Link, rest: Iterable[tuple[Place, bytes]]
) -> Break | None:
    if record["prev"] == after.hash and link.seq == after.seq + 1:
        return None
    here = f"record {link.seq} follows record {after.seq}"
    if link.seq <= after.seq:
        return Break(place, "reordered", f"{here}: it was moved or repeated")
    if link.seq == after.seq + 1:
        return Break(
            place, "changed", f"{here} but names another hash for it: the one before it was rewritten"
        )
    wanted = record["prev"]
    for later, line in rest:
        if (parse_line(line) or {}).get("hash") == wanted:
            return Break(place, "reordered", f"{here}; the one before it stands at {later}")
    gap = link.seq - after.seq - 1
    return Break(
        place, "missing", f"{here}; {gap} {'record is' if gap == 1 else 'records are'} missing before it"
    )
