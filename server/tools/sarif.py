"""Problems as SARIF 2.1.0, which code hosts and editors show at the lines of a file (docs.oasis-open.org/sarif)."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from guard.errors import Problem

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def sarif_log(command: str, problems: Sequence[Problem], notices: Sequence[str]) -> dict[str, Any]:
    """One run. Problems are results with their place; notices are notes without one."""
    codes = list(dict.fromkeys(problem.code for problem in problems))
    driver = {
        "name": f"interlock policy {command}",
        "version": version("interlock"),
        "rules": [{"id": code} for code in codes],
    }
    results = [_result(problem, codes.index(problem.code)) for problem in problems]
    notes = [{"level": "note", "message": {"text": notice}} for notice in notices]
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": [*results, *notes]}
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def _result(problem: Problem, rule: int) -> dict[str, Any]:
    hint = f"\nhint: {problem.hint}" if problem.hint else ""
    place = {
        "artifactLocation": {"uri": _uri(problem.file)},
        "region": {"startLine": problem.line, "startColumn": problem.col},
    }
    return {
        "ruleId": problem.code,
        "ruleIndex": rule,
        "level": problem.severity,
        "message": {"text": problem.message + hint},
        "locations": [{"physicalLocation": place}],
    }


def _uri(file: str) -> str:
    """Relative paths stay so: code hosts look for them below the repository's root."""
    path = Path(file)
    quoted = quote(path.as_posix(), errors="surrogateescape")  # names of files need not be UTF-8
    return f"file://{quoted}" if path.is_absolute() else quoted
