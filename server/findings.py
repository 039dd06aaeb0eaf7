"""What a check of `interlock doctor` found, and what to do about it."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    NONE = "none"  # nothing there to be checked
    OK = "ok"
    WARNING = "warning"  # the server would start
    PROBLEM = "problem"  # it would not, or does not serve


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    level: Level
    found: str
    todo: str = ""

    @classmethod
    def ok(cls, check: str, found: str) -> "Finding":
        return cls(check, Level.OK, found)

    @classmethod
    def warning(cls, check: str, found: str, todo: str) -> "Finding":
        return cls(check, Level.WARNING, found, todo)

    @classmethod
    def problem(cls, check: str, found: str, todo: str) -> "Finding":
        return cls(check, Level.PROBLEM, found, todo)
