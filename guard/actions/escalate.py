"""`escalate: {to, deadline, on_timeout}` holds the reply and asks for a second opinion, which lets it go on or refuses it."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from guard.actions.refusing import Refusing
from guard.durations import seconds
from guard.types import Advice, Answer, Effect, Severity
from guard.types import Escalate as EscalateEffect

LONGEST_S = 60.0  # beyond it, clients and proxies give up before the answer comes


def _deadline(text: str) -> str:
    if not 0 < seconds(text) <= LONGEST_S:
        raise ValueError(f"a deadline lies above 0s and is at most {LONGEST_S:g}s")
    return text


class Escalate(Refusing):
    kind: ClassVar[str] = "escalate"
    severity: ClassVar[Severity] = Severity.ESCALATE

    to: Annotated[str, Field(min_length=1)]
    """The name of a target that the server is configured with."""
    deadline: Annotated[str, AfterValidator(_deadline)] = "2s"
    on_timeout: Literal["block", "allow"] = "block"
    """What no answer means: too late, an error, or a target that is not asked because it kept failing."""

    @property
    def deadline_s(self) -> float:
        return seconds(self.deadline)

    def effects(self, rule: str) -> tuple[Effect, ...]:
        return (EscalateEffect(rule, self.to, self.deadline_s),)

    def allows(self, advice: Advice) -> bool:
        """What an answer, or none, is taken for."""
        match advice.answer:
            case Answer.ALLOW:
                return True
            case Answer.BLOCK:
                return False
            case Answer.UNKNOWN:
                return True  # a replay goes on, to see what else would have matched
            case _:
                return self.on_timeout == "allow"
