"""`interlock policy replay`: a candidate policy on the decision logs of a server."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from guard.backtest import Backtest, Group
from guard.errors import Problem
from server.tools.loading import load_all
from server.tools.log_lines import log_lines
from server.tools.report import ExitCode, Report

NOT_JSON = "a line is not JSON"
TOO_LONG = "a line is too long"
TORN = "the last line is torn: a crash cut it off, or it is being written"


def replay_logs(path: Path, logs: Sequence[Path], *, examples: int, expect_same: bool) -> Report:
    loaded = load_all([path])
    if not loaded.ok:
        errors = tuple(problem for problem in loaded.problems if problem.severity == "error")
        return Report("replay", problems=errors, code=ExitCode.ERRORS)
    ((_, policy),) = loaded.policies
    tally = Backtest(policy, keep=examples)
    problems: list[Problem] = []
    with _progress(logs) as advance:
        for log in logs:
            try:
                _replay_one(log, tally, advance)
            except OSError as error:
                told = f"cannot be read: {error.strerror or error}"
                problems.append(
                    Problem(str(log), 1, 1, "unreadable", told, "give a decision log (JSON lines)")
                )
    if not problems and not tally.num_judged:
        told = "holds no record that can be judged" if tally.num_unjudged else "is empty"
        problems.append(Problem(", ".join(map(str, logs)), 1, 1, "nothing-judged", f"the log {told}"))
    differs = expect_same and tally.num_same != tally.num_judged
    code = ExitCode.ERRORS if problems or differs else ExitCode.OK
    lines = tuple(_lines(tally)) if tally.num_judged or tally.num_unjudged else ()
    return Report(
        "replay", "\n".join(lines), _data(tally), tuple(problems), notices=tuple(_changes(tally)), code=code
    )


def _replay_one(log: Path, tally: Backtest, advance: Callable[[int], None]) -> None:
    for line in log_lines(log, advance):
        place = f"{log}:{line.number}"
        if line.too_long:
            tally.skip(TOO_LONG, place)
            continue
        try:
            record = orjson.loads(line.data)
        except orjson.JSONDecodeError:
            tally.skip(NOT_JSON if line.complete else TORN, place)
        else:
            tally.add(record, place)


@contextmanager
def _progress(logs: Sequence[Path]) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; nothing where stderr goes elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    total = sum(log.stat().st_size for log in logs if log.is_file())
    columns = (TextColumn("replaying"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("replaying", total=total or None)
        yield lambda size: bar.advance(task, size)


# --- told


def _lines(tally: Backtest) -> Iterator[str]:
    yield f"{tally.num_judged:,} decisions ({tally.num_tokens:,} tokens) decided again under {tally.policy}"
    for policy, count in tally.recorded_under.most_common(5):
        yield f"  {count:,} were recorded under {policy}"
    yield f"  {tally.num_same:,} the same to the last bit"
    if tally.num_same_in_part:
        yield f"  {tally.num_same_in_part:,} the same, as far as their rules could be judged"
    if tally.shifted.count:
        yield f"  {tally.shifted.count:,} the same verdict, by another rule, at another token or with other values{_examples(tally.shifted)}"
    yield f"  {tally.num_changed:,} another verdict"
    yield from (f"    {line}" for line in _changes(tally))
    if tally.num_judged:
        yield f"before: {_counts(tally.verdicts_before)}"
        yield f"after:  {_counts(tally.verdicts_after)}"
    if tally.num_unjudged:
        yield f"records that could not be judged: {tally.num_unjudged:,}"
    for reason, group in sorted(tally.unjudged.items(), key=lambda item: -item[1].count):
        yield f"    {group.count:,} {reason}{_examples(group)}"
    yield from _notes(tally)


def _notes(tally: Backtest) -> Iterator[str]:
    """What the figures do not show."""
    for (rule, series), group in tally.blind.items():
        yield f"note: rule {rule} could not be judged on {group.count:,}: no scores of {series} were recorded{_examples(group)}"
    for rule, group in tally.would_ask.items():
        yield f"note: rule {rule} would ask for {group.count:,} second opinions that were not recorded; the replies are taken as going on{_examples(group)}"
    if tally.num_open_ended:
        yield f"note: {tally.num_open_ended:,} replies had been stopped and would not be now: what the model would have said next is not known"
    if tally.num_rounded:
        yield f"note: {tally.num_rounded:,} were judged on scores rounded to 8 bits: near a threshold they may differ"


def _changes(tally: Backtest) -> Iterator[str]:
    """The most frequent first."""
    for change, group in sorted(tally.changes.items(), key=lambda item: (-item[1].count, item[0])):
        yield f"{group.count:,} {change}{_examples(group)}"


def _examples(group: Group) -> str:
    more = ", …" if group.count > len(group.examples) else ""
    return f": {', '.join(group.examples)}{more}" if group.examples else ""


def _counts(verdicts: dict[str, int]) -> str:
    return ", ".join(f"{verdict} {count:,}" for verdict, count in sorted(verdicts.items()))


def _data(tally: Backtest) -> dict[str, Any]:
    return {
        "policy": str(tally.policy),
        "recorded_under": dict(tally.recorded_under),
        "judged": tally.num_judged,
        "tokens": tally.num_tokens,
        "same": tally.num_same,
        "shifted": {"count": tally.shifted.count, "examples": tally.shifted.examples},
        "changes": [
            {
                **asdict(change),
                "count": group.count,
                "examples": group.examples,
            }
            for change, group in sorted(tally.changes.items(), key=lambda item: (-item[1].count, item[0]))
        ],
        "verdicts_before": dict(tally.verdicts_before),
        "verdicts_after": dict(tally.verdicts_after),
        "unjudged": [
            {"reason": reason, "count": group.count, "examples": group.examples}
            for reason, group in tally.unjudged.items()
        ],
        "same_in_part": tally.num_same_in_part,
        "blind": [
            {"rule": rule, "series": series, "count": group.count, "examples": group.examples}
            for (rule, series), group in tally.blind.items()
        ],
        "would_ask": [
            {"rule": rule, "count": group.count, "examples": group.examples}
            for rule, group in tally.would_ask.items()
        ],
        "open_ended": tally.num_open_ended,
        "rounded": tally.num_rounded,
    }
