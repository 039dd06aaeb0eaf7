"""What a tool has to say, and how it is said: to a reader, to a program, to a workflow on GitHub, or as SARIF."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, TextIO, assert_never

from guard.errors import Problem
from server.tools.sarif import sarif_log

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"
    GITHUB = "github"
    SARIF = "sarif"


class ExitCode(IntEnum):
    OK = 0
    ERRORS = 1
    USAGE = 2
    WARNINGS = 3  # only with --strict


@dataclass(frozen=True, slots=True)
class Report:
    """`text` for readers; `data` for programs; `problems` at places of files; `notices` without a place.

    `told` are problems that the text tells in its own way: they are added where the text is not all that is read.
    """

    command: str
    text: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    told: tuple[Problem, ...] = ()
    notices: tuple[str, ...] = ()
    code: int = ExitCode.OK


def print_report(report: Report, form: Format) -> None:
    """Text: problems on stderr, the rest on stdout. JSON and SARIF: one document. GitHub: workflow commands, then the text."""
    match form:
        case Format.TEXT:
            for problem in report.problems:
                say(str(problem), sys.stderr)
            if report.text:
                say(report.text, sys.stdout)
        case Format.JSON:
            problems = [asdict(problem) for problem in (*report.problems, *report.told)]
            whole = {
                "command": report.command,
                "exit_code": int(report.code),
                **report.data,
                "problems": problems,
            }
            say(json.dumps(whole, indent=2), sys.stdout)
        case Format.GITHUB:
            for line in _workflow_commands(report.command, (*report.problems, *report.told), report.notices):
                say(line, sys.stdout)
            if report.text:
                # a line of ours that happens to look like a command must not become one
                say(re.sub(r"^(?=\s*::|##\[)", "| ", report.text, flags=re.MULTILINE), sys.stdout)
        case Format.SARIF:
            log = sarif_log(report.command, (*report.problems, *report.told), report.notices)
            say(json.dumps(log, indent=2), sys.stdout)
        case _:
            assert_never(form)


def say(text: str, stream: TextIO) -> None:
    """Print a text that may hold anything: control characters and what the terminal can't show are escaped."""
    shown = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    encoding = stream.encoding or "utf-8"
    stream.write(shown.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def _workflow_commands(command: str, problems: Sequence[Problem], notices: Sequence[str]) -> list[str]:
    """https://docs.github.com/actions/reference/workflow-commands-for-github-actions"""
    lines = []
    for problem in problems:
        properties = {"file": problem.file, "line": problem.line, "col": problem.col, "title": problem.code}
        told = ",".join(f"{key}={_property(str(value))}" for key, value in properties.items())
        hint = f"\nhint: {problem.hint}" if problem.hint else ""
        lines.append(f"::{problem.severity} {told}::{_message(problem.message + hint)}")
    title = _property(f"interlock policy {command}")
    return [*lines, *(f"::notice title={title}::{_message(notice)}" for notice in notices)]


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
