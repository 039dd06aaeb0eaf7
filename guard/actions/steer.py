"""`steer: {vector, strength, for_tokens}` adds a steering vector from the next step on."""

from typing import Annotated, ClassVar

from pydantic import Field

from guard.actions.base import Action
from guard.types import Effect, Severity
from guard.types import Steer as SteerEffect


class Steer(Action):
    kind: ClassVar[str] = "steer"
    severity: ClassVar[Severity] = Severity.STEER

    vector: Annotated[str, Field(min_length=1)]
    strength: float
    for_tokens: Annotated[int, Field(ge=0)] = 0
    """0: until the end of the response."""

    def effects(self, rule: str) -> tuple[Effect, ...]:
        return (SteerEffect(rule, self.vector, self.strength, self.for_tokens),)
