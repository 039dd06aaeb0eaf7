"""`replace: {message}` ends the model's answer and gives the message in its place, as an ordinary reply."""

from typing import Annotated, ClassVar

from pydantic import Field

from guard.actions.base import Action
from guard.types import Effect, Say, Severity, Stop, StopReason


class Replace(Action):
    kind: ClassVar[str] = "replace"
    severity: ClassVar[Severity] = Severity.REPLACE

    message: Annotated[str, Field(min_length=1, max_length=4_000)]

    def effects(self, rule: str) -> tuple[Effect, ...]:
        return (Say(self.message, refusal=False), Stop(StopReason.REPLACED))
