"""The choices of an admitted request, run side by side through the guarded pipeline; cancelled when the client goes away.

Every route that runs the model answers with a `GuardedResponse`, and nothing else calls the pipeline.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import anyio
import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from guard.types import Phase, Stop, StopReason
from server.admitted import Admitted
from server.api.errors import Body
from server.engines.base import FinishReason, StepOutput, Token
from server.pipeline import Choice, Closed, Cut, Delta, Event, Opened, Said, guarded
from server.scheduling.types import DeadlineError
from server.service import Service

_log = structlog.get_logger()
_BUFFERED_EVENTS = 64  # per request, between the pipelines and what makes a reply of them


@dataclass(slots=True)
class Result:
    """What has become of one choice so far."""

    opened: StepOutput | None = None
    tokens: list[Token] = field(default_factory=list)
    said: Said | None = None
    closed: Closed | None = None

    def take(self, event: Event) -> None:
        match event:
            case Opened(step):
                self.opened = step
            case Delta(tokens):
                self.tokens.extend(tokens)
            case Said():
                self.said = event
            case Closed():
                self.closed = event

    @property
    def text(self) -> str:
        """What the model said and may be shown."""
        return "".join(token.text for token in self.tokens)

    @property
    def decided(self) -> bool:
        """Whether the prompt was decided on."""
        return self.opened is not None or self.closed is not None

    @property
    def finish_reason(self) -> str:
        """In OpenAI's words."""
        assert self.closed is not None, "asked before the choice ended"  # noqa: S101
        match self.closed.stop:
            case None:
                return self.closed.finish or FinishReason.STOP
            case Stop(StopReason.REPLACED):
                return "stop"
            case _:
                return "content_filter"

    @property
    def refusal(self) -> str:
        """What is said of a reply that was withheld."""
        return self.said.text if self.said else "This reply was withheld by policy."

    @property
    def unavailable(self) -> bool:
        """Whether it was stopped because the guard could not judge."""
        stop = self.closed.stop if self.closed else None
        return stop is not None and stop.reason is StopReason.UNAVAILABLE


class GuardedResponse(Response):
    """A response that is made while choices run. Subclasses say how, in `_answer`."""

    def __init__(self, service: Service, admitted: Admitted) -> None:
        self._service = service
        self._admitted = admitted
        self._results = [Result() for _ in admitted.choices]
        self._is_answered = False
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._cancel_when_gone, receive, group.cancel_scope)
            async with _running(self._service, self._admitted) as events:
                await self._answer(events, scope, receive, send)
                self._is_answered = True  # the server tells of that as if the client had left
            group.cancel_scope.cancel()

    async def _answer(self, events: "Events", scope: Scope, receive: Receive, send: Send) -> None:
        """Take the events, and send one response. Must not raise."""
        raise NotImplementedError

    async def _cancel_when_gone(self, receive: Receive, scope: anyio.CancelScope) -> None:
        """The body was read before, so the next message can only be that the client left."""
        while (await receive())["type"] != "http.disconnect":
            pass
        if not self._is_answered:
            self._service.metrics.disconnects.inc()
            self._cut("client_gone")
        scope.cancel()

    def _stalled(self) -> None:
        """The client takes nothing: what still runs is about to be cut off."""
        self._service.metrics.stream_stalls.inc()
        _log.warning("a client takes nothing; its stream is cut off", decision_id=self._admitted.decision_id)
        self._cut("client_stalled")

    def _cut(self, why: Cut) -> None:
        for choice, result in zip(self._admitted.choices, self._results, strict=True):
            if not result.closed:
                choice.observer.cut(why)

    async def _drain(self, events: "Events") -> None:
        while not all(result.closed for result in self._results):
            index, event = await events.get()
            self._results[index].take(event)

    # --- what every reply tells of the guard -------------------------------------------------------------------------

    def _guard_headers(self) -> dict[str, str]:
        return {
            "x-interlock-decision-id": self._admitted.decision_id,
            "x-interlock-policy": str(self._admitted.policy),
        }

    def _action_so_far(self) -> str:
        action: str = self._extension_of(self._admitted.choices)["interlock"]["action"]
        return action

    def _extension_of(self, choices: Sequence[Choice]) -> Body:
        """The `interlock` object of a reply: the most severe thing that was done; by which rule only for who may debug."""
        outcomes = [choice.decider.outcome for choice in choices]
        for outcome in outcomes:
            if outcome.unavailable:
                return self._extension("unavailable", outcome.phase, choices)
        worst = max(outcomes, key=lambda outcome: outcome.action)
        return self._extension(worst.action.name.lower(), worst.phase, choices)

    def _extension(self, action: str, phase: Phase | None, choices: Sequence[Choice] | None = None) -> Body:
        told: Body = {
            "decision_id": self._admitted.decision_id,
            "action": action,
            "phase": phase,
            "policy": str(self._admitted.policy),
        }
        if self._admitted.shows_rules:
            told |= _rules(self._admitted.choices if choices is None else choices)
        return {"interlock": told}


def _rules(choices: Sequence[Choice]) -> Body:
    """The rules that matched so far, in order, enforced and in shadow."""
    outcomes = [choice.decider.outcome for choice in choices]
    matched = {
        "rules": [match.rule for outcome in outcomes for match in outcome.matches],
        "shadow": [match.rule for outcome in outcomes for match in outcome.shadow],
    }
    return {name: list(dict.fromkeys(rules)) for name, rules in matched.items()}


class Events:
    """The events of several choices, in the order in which they come. A failed choice raises in the reader."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue(_BUFFERED_EVENTS)

    async def pump(self, service: Service, choice: Choice, deadline: float | None) -> None:
        left_s = None if deadline is None else deadline - service.clock()
        timeout = asyncio.timeout(left_s)
        loop = asyncio.get_running_loop()  # the observer is told just before the choice is cut off
        telling = None if left_s is None else loop.call_later(left_s, choice.observer.cut, "deadline")
        try:
            async with timeout, aclosing(guarded(service.engine, choice, service.clock)) as events:
                async for event in events:
                    await self._queue.put((choice.index, event))
        except Exception as error:  # noqa: BLE001  # told to the reader
            if timeout.expired():
                service.metrics.deadlines.inc()
            await self._queue.put((choice.index, DeadlineError() if timeout.expired() else error))
        finally:
            if telling is not None:
                telling.cancel()

    async def get(self) -> tuple[int, Event]:
        index, event = await self._queue.get()
        if isinstance(event, Exception):
            raise event
        return index, event


@asynccontextmanager
async def _running(service: Service, admitted: Admitted) -> AsyncIterator[Events]:
    """Run the choices in tasks of their own; leaving cancels those that still run."""
    events = Events()
    async with anyio.create_task_group() as group:
        for choice in admitted.choices:
            group.start_soon(events.pump, service, choice, admitted.deadline)
        yield events
        group.cancel_scope.cancel()
