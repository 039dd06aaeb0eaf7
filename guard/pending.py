"""A step whose effects wait for second opinions."""

from collections.abc import Mapping
from dataclasses import dataclass

from guard.actions.escalate import Escalate
from guard.errors import DeciderError
from guard.rules import Rule
from guard.types import Advice, Effect, Opinion, Phase


@dataclass(frozen=True, slots=True)
class Pending:
    """The rules that ask, at a token of a phase, and what else is true there: it acts if the response goes on."""

    phase: Phase
    token: int
    asking: tuple[tuple[Rule, Escalate], ...]
    acting: tuple[Rule, ...]

    @property
    def questions(self) -> tuple[Effect, ...]:
        return tuple(effect for rule, action in self.asking for effect in action.effects(rule.id))

    def opinions(self, advice: Mapping[str, Advice]) -> tuple[Opinion, ...]:
        """One for each rule that asks, in their order. Raises DeciderError if `advice` is not on just these rules."""
        asked = [rule.id for rule, _ in self.asking]
        if set(asked) != set(advice):
            told = f"asked for: {', '.join(asked)}; got: {', '.join(sorted(advice)) or 'nothing'}"
            raise DeciderError(f"resolve() takes the second opinions that were asked for. {told}")
        return tuple(
            Opinion(rule.id, action.to, told, action.allows(told), self.phase, self.token)
            for rule, action in self.asking
            for told in (advice[rule.id],)
        )


def pending(phase: Phase, token: int, acting: list[Rule]) -> Pending | None:
    """What waits, if one of the rules that are true asks for a second opinion."""
    asking = tuple((rule, rule.action) for rule in acting if isinstance(rule.action, Escalate))
    others = tuple(rule for rule in acting if not isinstance(rule.action, Escalate))
    return Pending(phase, token, asking, others) if asking else None
