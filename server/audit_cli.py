"""`interlock audit …`: is the decision log whole, and which decisions are in it. No server is needed."""

import json
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import orjson
import typer

from guard.types import JsonObject
from server.auditing import index as indexing
from server.auditing.query import Query, ScoreRange, find, parse_bound, parse_time
from server.auditing.verify import Report
from server.auditing.verify import verify as verify_files

audit_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Verify the decision log, and find decisions in it. The format is described in docs/decision-log.md.",
)


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"


class Action(StrEnum):
    ALLOW = "allow"
    LOG = "log"
    ANNOTATE = "annotate"
    STEER = "steer"
    ESCALATE = "escalate"
    REPLACE = "replace"
    BLOCK = "block"
    UNAVAILABLE = "unavailable"


_Format = Annotated[Format, typer.Option("--format", help="text, or json (one object per line).")]
_Database = Annotated[
    Path | None, typer.Option("--db", help="Where the index is. Default: index.sqlite in the folder.")
]


@audit_app.command()
def verify(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Log files, in any order, or folders of *.jsonl.", show_default=False),
    ],
    *,
    contains: Annotated[
        str | None,
        typer.Option(
            help="A hash that an earlier run printed: fail unless the log still ends with or goes on from it."
        ),
    ] = None,
    output: _Format = Format.TEXT,
) -> None:
    """Walk the hash chain over rotated files, and name the first record that was changed, is missing, was moved or is torn.

    Leaves with 0 (whole), 1 (broken) or 2 (can't be read). A chain can't show that its newest records were cut off:
    keep the hash that this command prints elsewhere, and give it back with --contains.

    - `interlock audit verify var/`

    - `interlock audit verify var/decisions*.jsonl --contains sha256:8f03…`
    """
    with _told():
        report = verify_files(paths, expected_hash=contains)
    if output is Format.JSON:
        typer.echo(json.dumps(_report_object(report)))
    else:
        for note in report.notes:
            typer.echo(f"note: {note}", err=True)
        typer.echo(report.broken or _summary(report))
    if report.broken:
        raise typer.Exit(1)


@audit_app.command()
def index(
    folder: Annotated[Path, typer.Argument(help="Folder of the decision log.", show_default=False)],
    *,
    db: _Database = None,
) -> None:
    """Bring the SQLite index of a folder up to date. Only what is new is read.

    `interlock audit query` does this by itself. The tables are `decisions`, `matches`, `scores` and `files`, for
    your own SQL: `sqlite3 var/index.sqlite "SELECT rule, count(*) FROM matches GROUP BY rule"`
    """
    with _told(), _opened(folder, db) as connection:
        done = indexing.update(connection, folder)
    typer.echo(
        f"{done.added} records added, {done.skipped} lines skipped, {done.forgotten_files} files forgotten"
    )


@audit_app.command()
def query(
    folder: Annotated[Path, typer.Argument(help="Folder of the decision log.")] = Path("var"),
    *,
    since: Annotated[
        str | None, typer.Option(help="From then on: 2026-11-22, 2026-11-22T17:35:00Z, or 15m, 2h, 3d ago.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Before then; the same forms.")] = None,
    action: Annotated[list[Action] | None, typer.Option(help="Action taken; may be repeated.")] = None,
    rule: Annotated[
        str | None, typer.Option(help="A rule that matched, enforced or in shadow; a glob.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Tenant; a glob.")] = None,
    model: Annotated[str | None, typer.Option(help="Model; a glob.")] = None,
    min_score: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MONITOR=X", help="A monitor's highest score is at least X: harm=0.8, or prompt.harm=0.8."
        ),
    ] = None,
    max_score: Annotated[
        list[str] | None, typer.Option(metavar="MONITOR=X", help="A monitor's highest score is at most X.")
    ] = None,
    decision: Annotated[
        str | None, typer.Option(metavar="ID", help="A decision id, or the beginning of one.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 100,
    output: _Format = Format.TEXT,
    db: _Database = None,
) -> None:
    """Find decisions. All conditions must hold; the newest come last.

    - `interlock audit query --since 2h --action block`

    - `interlock audit query --rule 'deception-*' --tenant acme --min-score deception=0.8`

    - `interlock audit query --decision 01fe5a --format json | jq .matches`
    """
    now = datetime.now(UTC)
    with _told(), _opened(folder, db) as connection:
        asked = Query(
            since=parse_time(since, now) if since else None,
            until=parse_time(until, now) if until else None,
            actions=action or (),
            rule=rule,
            tenant=tenant,
            model=model,
            decision=decision,
            scores=[*_ranges(min_score, "low"), *_ranges(max_score, "high")],
            limit=limit,
        )
        indexing.update(connection, folder)
        found = 0
        for record in find(connection, folder, asked):
            found += 1
            typer.echo(orjson.dumps(record) if output is Format.JSON else _line(record))
    if output is Format.TEXT:
        typer.echo(_told_count(found, limit), err=True)


def _ranges(bounds: Sequence[str] | None, side: str) -> Iterator[ScoreRange]:
    for bound in bounds or ():
        monitor, phase, value = parse_bound(bound)
        yield ScoreRange(monitor, phase, **{side: value})


@contextmanager
def _opened(folder: Path, db: Path | None) -> Iterator[sqlite3.Connection]:
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: no such folder; name the one in which `interlock serve --audit` keeps its log"
        )
    with indexing.opened(db or folder / "index.sqlite") as connection:
        yield connection


@contextmanager
def _told() -> Iterator[None]:
    """What can go wrong with files and what the user typed ends in one line, and 2."""
    try:
        yield
    except BrokenPipeError:  # `| head`
        sys.exit(0)
    except sqlite3.Error as error:
        _refuse(
            f"the index: {error}; name a file that this user may write with --db, or remove it to have it rebuilt"
        )
    except OSError as error:
        _refuse(f"{error.filename}: {error.strerror}")
    except ValueError as error:
        _refuse(str(error))


def _refuse(message: str) -> NoReturn:
    typer.echo(f"interlock audit: {message}", err=True)
    raise typer.Exit(2)


# --- how it looks


def _summary(report: Report) -> str:
    files = f"{report.num_files} file{'' if report.num_files == 1 else 's'}"
    if report.first is None or report.last is None:
        return f"ok: no records in {files}"
    return (
        f"ok: {report.num_records} records in {files}, {report.first['seq']} to {report.last['seq']}, "
        f"{report.first['ts']} to {report.last['ts']}\nlast: {report.last['hash']}"
    )


def _report_object(report: Report) -> JsonObject:
    broken = report.broken
    return {
        "ok": broken is None,
        "files": report.num_files,
        "records": report.num_records,
        "last": report.last["hash"] if report.last else None,
        "notes": report.notes,
        "broken": broken
        and {
            "file": str(broken.place.file),
            "line": broken.place.line,
            "kind": broken.kind,
            "why": broken.why,
        },
    }


def _line(record: JsonObject) -> str:
    """One decision in one line: when, what, where, whom, why, id."""
    where = f"{record['phase']}:{record['token']}" if record["phase"] else "-"
    rules = [match["rule"] for match in record["matches"]]
    rules += [f"{match['rule']} (shadow)" for match in record["shadow"]]
    if record["errors"]:
        rules.append(f"{len(record['errors'])} failed")
    scores = [
        f"{phase}.{monitor}={series['max']:.3g}"
        for phase, by_monitor in record["scores"].items()
        for monitor, series in by_monitor.items()
        if "max" in series
    ]
    choice = f"#{record['choice']}" if record.get("choice") else ""
    parts = [
        record["ts"],
        f"{record['action']:<11}",
        f"{where:<13}",
        f"{record['tenant']}/{record['model']}",
        ", ".join(rules) or "-",
        " ".join(scores),
        f"{record['decision_id']}{choice}",
    ]
    return "  ".join(parts)


def _told_count(found: int, limit: int) -> str:
    if found == 0:
        return "no decision matches"
    more = f"; the newest {limit}, see --limit" if found == limit else ""
    return f"{found} decision{'' if found == 1 else 's'}{more}"
