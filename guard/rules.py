"""Rules and exceptions as the decider uses them: parsed, defaults filled in, immutable."""

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Literal

from guard.actions.base import Action
from guard.expressions import Condition, Quantity, Scalar, calls, quantities
from guard.scope import Match, Rollout, any_glob
from guard.types import Gate, Mode, OnError, Phase, Subject

RuleSeverity = Literal["low", "medium", "high", "critical"]


@dataclass(frozen=True)
class Rule:
    """When something holds, do something."""

    id: str
    severity: RuleSeverity
    description: str
    tags: tuple[str, ...]
    match: Match
    when: str
    condition: Condition
    action: Action
    mode: Mode
    on_error: OnError
    rollout: Rollout | None
    holdback: int  # of its file
    precedence: int  # of its file
    override: str  # why it may act without what an action needs; empty: no reason is written
    overridden: tuple[Gate, ...]  # what it needs, has not, and goes without by its override
    file: str

    @cached_property
    def quantities(self) -> tuple[Quantity, ...]:
        return quantities(self.condition)

    @cached_property
    def reads(self) -> frozenset[tuple[Phase, str]]:
        """The scores that its condition needs; those of a conversation are the prompt's and the response's."""
        series = [call.series for call in calls(self.condition)]
        return frozenset((phase, s.monitor) for s in series for phase in s.scope.phases)

    @cached_property
    def reads_response(self) -> bool:
        """Whether a response token can change its verdict: it reads their scores, or counts them."""
        return Scalar("tokens") in self.quantities or any(phase is Phase.RESPONSE for phase, _ in self.reads)

    def mode_for(self, subject: Subject, rollout_bucket: float | None) -> Mode:
        """The mode in which the rule runs for a subject, before exceptions."""
        if self.mode is not Mode.ENFORCE or self.rollout is None:
            return self.mode
        if rollout_bucket is not None:
            included = rollout_bucket < self.rollout.percent
        else:
            included = self.rollout.includes(self.id, subject)
        return Mode.ENFORCE if included else Mode.SHADOW


@dataclass(frozen=True, slots=True)
class Waiver:
    """An exception of a policy: for a while, some rules do not act on some subjects."""

    id: str
    rules: tuple[str, ...]  # globs
    match: Match
    mode: Mode  # shadow or off
    starts: datetime | None
    expires: datetime
    reason: str
    approved_by: tuple[str, ...]

    def covers(self, rule: Rule, subject: Subject, now: datetime) -> bool:
        in_force = (self.starts is None or self.starts <= now) and now < self.expires
        return in_force and any_glob(self.rules, rule.id) and self.match.covers(subject)
