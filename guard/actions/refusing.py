"""What `block` and `escalate` share: how a request is refused, and how much of the reply may have left by then."""

from typing import Annotated, Literal

from pydantic import Field

from guard.actions.base import Action
from guard.types import Effect, Say, Stop, StopReason


class Refusing(Action):
    message: Annotated[str, Field(min_length=1, max_length=4_000)] | None = None
    code: Literal["content_filter", "misalignment_policy_violation"] = "content_filter"
    at_most_delivered: Annotated[int, Field(ge=0)] | None = None
    """At most this many response tokens leave before the response is judged to its end. 0: all of it is buffered."""

    def refusal(self) -> tuple[Effect, ...]:
        """The end of a request that is refused."""
        stop = Stop(StopReason.BLOCKED, self.code)
        return (stop,) if self.message is None else (Say(self.message, refusal=True), stop)
