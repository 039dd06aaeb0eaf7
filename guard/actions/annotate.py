"""`annotate: {}` marks the reply: the caller sees that a rule matched, and the text is unchanged."""

from typing import ClassVar

from guard.actions.base import Action
from guard.types import Effect, Severity


class Annotate(Action):
    kind: ClassVar[str] = "annotate"
    severity: ClassVar[Severity] = Severity.ANNOTATE

    def effects(self, rule: str) -> tuple[Effect, ...]:
        return ()
