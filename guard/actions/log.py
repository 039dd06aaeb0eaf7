"""`log: {}` records the match and does nothing else."""

from typing import ClassVar

from guard.actions.base import Action
from guard.types import Effect, Severity


class Log(Action):
    kind: ClassVar[str] = "log"
    severity: ClassVar[Severity] = Severity.LOG

    def effects(self, rule: str) -> tuple[Effect, ...]:
        return ()
