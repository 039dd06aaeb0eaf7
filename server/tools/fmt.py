"""`interlock policy fmt`: the canonical layout of policy files, written atomically or only checked."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from guard.errors import PolicyError, Problem
from guard.layout import formatted
from guard.yaml_source import read_source
from server.tools.loading import all_files, unreadable
from server.tools.report import ExitCode, Report


def format_files(paths: Sequence[Path], *, check_only: bool) -> Report:
    files, problems = all_files(paths)
    changed: list[Path] = []
    for file in files:
        try:
            if _format(file, check_only=check_only):
                changed.append(file)
        except PolicyError as error:
            problems += error.problems
        except OSError as error:
            problems.append(unreadable(file, error))
    untidy = tuple(_untidy(file) for file in changed) if check_only else ()
    verb = "would be laid out anew" if check_only else "laid out anew"
    lines = [f"{verb}: {file}" for file in changed] or (["nothing to do"] if not problems else [])
    data = {"files": [{"file": str(file), "changed": file in changed} for file in files]}
    code = ExitCode.ERRORS if problems or untidy else ExitCode.OK
    return Report("fmt", "\n".join(lines), data, tuple(problems), told=untidy, code=code)


def _untidy(file: Path) -> Problem:
    return Problem(str(file), 1, 1, "layout", "not in canonical layout", f"run: interlock policy fmt {file}")


def _format(file: Path, *, check_only: bool) -> bool:
    """Whether the layout was another one. Raises PolicyError or OSError; the file is then as it was."""
    read_source(file)  # tells a file that is too large, or not text, with its place
    text = file.read_bytes().decode("utf-8")
    laid_out = formatted(text, str(file))
    if laid_out != text and not check_only:
        write_atomically(file, laid_out)
    return laid_out != text


def write_atomically(file: Path, text: str) -> None:
    """The old content or the new one, never half of it; the mode stays, and a link stays a link. Raises OSError."""
    target = file.resolve()
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(target.stat().st_mode & 0o7777)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
