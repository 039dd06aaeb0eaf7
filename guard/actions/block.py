"""`block: {...}` ends the request as refused; nothing that is still held leaves."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from guard.actions.base import Action
from guard.types import Effect, Say, Severity, Stop, StopReason


class Block(Action):
    kind: ClassVar[str] = "block"
    severity: ClassVar[Severity] = Severity.BLOCK

    message: Annotated[str, Field(min_length=1, max_length=4_000)] | None = None
    code: Literal["content_filter", "misalignment_policy_violation"] = "content_filter"
    at_most_delivered: Annotated[int, Field(ge=0)] | None = None
    """At most this many response tokens leave before the response is judged to its end. 0: all of it is buffered."""

    def effects(self, rule: str) -> tuple[Effect, ...]:
        stop = Stop(StopReason.BLOCKED, self.code)
        return (stop,) if self.message is None else (Say(self.message, refusal=True), stop)
