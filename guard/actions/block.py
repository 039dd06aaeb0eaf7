"""`block: {...}` ends the request as refused; nothing that is still held leaves."""

from typing import ClassVar

from guard.actions.refusing import Refusing
from guard.types import Effect, Severity


class Block(Refusing):
    kind: ClassVar[str] = "block"
    severity: ClassVar[Severity] = Severity.BLOCK

    def effects(self, rule: str) -> tuple[Effect, ...]:
        return self.refusal()
