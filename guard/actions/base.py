"""What an action is: settings from a policy file that turn into effects, as data, when its rule matches."""

from abc import ABC, abstractmethod
from typing import ClassVar

from guard.strict import Strict
from guard.types import Effect, Severity


class Action(Strict, ABC):
    """One kind of `then:`. Effects that show or hold text are the decider's; an action adds its own to them."""

    kind: ClassVar[str]
    severity: ClassVar[Severity]

    @abstractmethod
    def effects(self, rule: str) -> tuple[Effect, ...]:
        """What a match of `rule` asks of the pipeline."""
