"""What can go wrong in the guard, and how a problem in a policy file is told.

GuardError
├── PolicyError          policy files are wrong; carries every Problem that was found
│   └── ExpressionError  one condition is wrong; carries every flaw, by its offset in the text
└── DeciderError         the caller broke the decider's contract (a skipped token, a step after the end)
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

_SHOWN_COLUMNS = 120
_SHOWN_NAMES = 30


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong (or doubtful, as a warning) at one place of a policy file. Lines and columns count from 1."""

    file: str
    line: int
    col: int
    code: str
    message: str
    hint: str = ""
    source_line: str = ""
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        file = self.file.replace("\n", "\\n")  # one line per problem, whatever a file is called
        text = f"{file}:{self.line}:{self.col}: {self.severity}[{self.code}]: {self.message}"
        if self.source_line.strip():
            start = max(0, self.col - _SHOWN_COLUMNS)  # a very long line is shown around its column only
            shown = self.source_line[start : start + 2 * _SHOWN_COLUMNS].replace("\t", " ").rstrip()
            text += f"\n    {shown}\n    {' ' * (self.col - 1 - start)}^"
        if self.hint:
            text += f"\n    hint: {self.hint}"
        return text


class GuardError(Exception):
    """The root of everything that the guard raises on purpose."""


class PolicyError(GuardError):
    """A policy cannot be used. `problems` holds all that was found, in file order; at least one is an error."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True, slots=True)
class Flaw:
    """One thing that is wrong in a condition; `at` is the offset in its text, from 0."""

    at: int
    code: str
    message: str
    hint: str = ""


class ExpressionError(PolicyError):
    """A condition cannot be understood. The loader maps its flaws to places in the file."""

    def __init__(self, text: str, flaws: Iterable[Flaw]) -> None:
        self.flaws = tuple(flaws)
        line = text.replace("\n", " ")  # as the parser reads it, so that columns fit
        super().__init__(
            Problem("<when>", 1, flaw.at + 1, flaw.code, flaw.message, flaw.hint, line) for flaw in self.flaws
        )


class DeciderError(GuardError):
    """The caller broke the decider's contract: a bug in the caller, never in the traffic."""


def did_you_mean(word: str, known: Collection[str]) -> str:
    """A hint for an unknown word: the closest known one if there is any, and what is allowed."""
    first = ", ".join(sorted(known)[:_SHOWN_NAMES])
    allowed = f"known: {first}" if known else ""
    if len(known) > _SHOWN_NAMES:
        allowed += f" and {len(known) - _SHOWN_NAMES} more"
    by_lower = {name.lower(): name for name in known}
    close = get_close_matches(word.lower(), by_lower, n=1)
    return f"did you mean '{by_lower[close[0]]}'? {allowed}" if close else allowed
