"""Asks targets for second opinions: within a deadline, so many at a time, and not while they keep failing."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from time import monotonic

import anyio
import structlog

from guard.types import Advice, Answer
from server.breaker import Breaker, BreakerState, InARow
from server.second_opinion.client import HttpClient
from server.second_opinion.config import Target
from server.second_opinion.types import AskError, Judgement, Question, Usage

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Told:
    """What asking one target came to, for metrics."""

    target: str
    advice: Advice
    usage: Usage = field(default_factory=Usage)
    cost: float = 0.0  # in the currency of the target's prices


@dataclass(frozen=True, slots=True, eq=False)
class _Desk:
    """A target and its state."""

    target: Target
    breaker: Breaker
    slots: asyncio.Semaphore


class SecondOpinions:
    """All targets of one server. Rules know them by name."""

    def __init__(
        self,
        targets: Iterable[Target] = (),
        *,
        clock: Callable[[], float] = monotonic,
        on_told: Callable[[Told], None] = lambda _: None,
    ) -> None:
        self._clock = clock
        self._on_told = on_told
        self._desks = {target.name: self._desk(target) for target in targets}
        self._client = HttpClient() if self._desks else None
        self._waiting: set[anyio.CancelScope] = set()
        self._stopping = False

    def _desk(self, target: Target) -> _Desk:
        settings, limits = target.settings, target.settings.breaker
        breaker = Breaker(self._clock, InARow(limits.failures), recovery_s=limits.recovery_s)
        return _Desk(target, breaker, asyncio.Semaphore(settings.max_concurrency))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._desks)

    @property
    def breakers(self) -> Mapping[str, BreakerState]:
        return {name: desk.breaker.state for name, desk in self._desks.items()}

    async def ask(self, name: str, question: Question, deadline_s: float) -> Advice:
        """Raises KeyError for an unknown target, which a policy that was loaded cannot name; nothing for a target's fault."""
        desk = self._desks[name]
        started = self._clock()
        told = await self._ask(desk, question, min(deadline_s, desk.target.settings.timeout_s))
        advice = replace(told.advice, seconds=round(self._clock() - started, 6))
        self._on_told(replace(told, advice=advice))
        if advice.answer in {Answer.TIMEOUT, Answer.ERROR, Answer.BUSY}:
            _log.warning(
                "no second opinion",
                target=name,
                answer=advice.answer.value,
                reason=advice.reason,
                decision_id=question.decision_id,
                rule=question.rule,
            )
        return advice

    async def _ask(self, desk: _Desk, question: Question, timeout_s: float) -> Told:
        name = desk.target.name
        if question.num_chars > desk.target.settings.max_chars:
            return Told(name, Advice(Answer.ERROR, reason="too_long"))
        if self._stopping:
            return Told(name, Advice(Answer.ERROR, reason="stopping"))
        if desk.breaker.refuses:
            return Told(name, Advice(Answer.BREAKER_OPEN))
        sent = False
        scope = anyio.CancelScope(deadline=anyio.current_time() + timeout_s)
        self._waiting.add(scope)
        try:
            with scope:
                async with desk.slots:
                    if not desk.breaker.admit():
                        return Told(name, Advice(Answer.BREAKER_OPEN))
                    sent = True
                    return await self._sent(desk, question, timeout_s)
        except BaseException:
            if sent:
                desk.breaker.abandoned()  # the client is gone, which says nothing about the target
            raise
        finally:
            self._waiting.discard(scope)
        if self._stopping:
            return Told(name, Advice(Answer.ERROR, reason="stopping"))
        if not sent:
            return Told(name, Advice(Answer.BUSY))
        desk.breaker.failed()
        return Told(name, Advice(Answer.TIMEOUT))

    async def _sent(self, desk: _Desk, question: Question, timeout_s: float) -> Told:
        assert self._client is not None, "there is a client where there are targets"  # noqa: S101
        name, settings, breaker = desk.target.name, desk.target.settings, desk.breaker
        try:
            body = await self._client.post(settings.request(question, desk.target.secret), timeout_s)
            judgement = settings.read(body, question)
        except AskError as error:
            if error.counts:
                breaker.failed()
            else:
                breaker.abandoned()
            return Told(name, Advice(Answer.ERROR, reason=error.reason))
        breaker.succeeded()
        advice = Advice(Answer.ALLOW if judgement.allow else Answer.BLOCK, reason=judgement.reason)
        return Told(name, advice, judgement.usage, _cost(desk.target, judgement))

    def give_up(self) -> None:
        """The server ends: who still waits is told now that there is no answer, and nobody is asked any more."""
        self._stopping = True
        for scope in list(self._waiting):
            scope.cancel()

    async def close(self) -> None:
        self.give_up()
        if self._client is not None:
            await self._client.close()


def _cost(target: Target, judgement: Judgement) -> float:
    settings, usage = target.settings, judgement.usage
    tokens = (
        usage.prompt_tokens * settings.cost_per_1k_prompt_tokens
        + usage.completion_tokens * settings.cost_per_1k_completion_tokens
    )
    return settings.cost_per_request + tokens / 1000
