"""How an admitted request is answered: its choices run side by side, and their events become JSON or a stream.

The status code is not sent before every choice was decided on its prompt. From then on a stream always ends with
finish reasons or an error event, and `[DONE]`. When the client goes away, everything is cancelled at once.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio
import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from guard.types import Phase, Stop, StopReason
from server.admission import Admitted
from server.api.errors import ApiError, Body, from_failure, unavailable
from server.engines.base import FinishReason, StepOutput, Token
from server.pipeline import Choice, Closed, Delta, Event, Opened, Said, guarded
from server.service import Service

_KEEP_ALIVE_S = 15.0
_STALLED_S = 30.0  # a client that takes nothing for so long is given up
_BUFFERED_EVENTS = 64  # per request, between the pipelines and the socket


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


class Renderer(Protocol):
    """One endpoint's wire shape."""

    def chunks(self, index: int, event: Event, result: Result) -> Iterable[Body]:
        """The stream chunks that an event becomes."""
        ...

    def usage_chunk(self, usage: Body) -> Body: ...

    def whole(self, results: list[Result], usage: Body) -> Body:
        """The reply that is not streamed."""
        ...


class Reply(Response):
    """The response to an admitted request."""

    def __init__(
        self, service: Service, admitted: Admitted, renderer: Renderer, *, stream: bool, usage: bool
    ) -> None:
        self._service = service
        self._admitted = admitted
        self._renderer = renderer
        self._stream = stream
        self._include_usage = usage
        self._results = [Result() for _ in admitted.choices]
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._cancel_when_gone, receive, group.cancel_scope)
            await self._answer(scope, receive, send)
            group.cancel_scope.cancel()

    async def _cancel_when_gone(self, receive: Receive, scope: anyio.CancelScope) -> None:
        """The body was read before, so the next message can only be that the client left."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._service.metrics.disconnects.inc()
        scope.cancel()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with _running(self._service, self._admitted.choices) as events:
            try:
                early = await self._until_decided(events)
                if self._stream:
                    await self._send_stream(early, events, send)
                    return
                await self._drain(events)
                response = self._whole()
            except Exception as error:  # noqa: BLE001  # whatever was raised, the client gets a well-formed answer
                response = from_failure(error).response()
            response.headers.update(self._own_headers())
            await response(scope, receive, send)

    def _whole(self) -> Response:
        body = self._renderer.whole(self._results, self._usage())
        body.update(self._extension_of(self._admitted.choices))
        return Response(orjson.dumps(body), media_type="application/json")

    async def _until_decided(self, events: "_Events") -> list[tuple[int, Event]]:
        """Wait until each prompt was decided on. Raises ApiError where a choice was stopped there.

        Choices of one prompt have the same scores and so the same decision: the first to come tells.
        """
        early: list[tuple[int, Event]] = []
        prompts = [id(choice.request.prompt_ids) for choice in self._admitted.choices]
        while {p for p, result in zip(prompts, self._results, strict=True) if result.decided} != set(prompts):
            index, event = await events.get()
            self._results[index].take(event)
            early.append((index, event))
            if isinstance(event, Closed) and event.stop is not None and event.phase is Phase.PROMPT:
                self._raise_if_refused(event.stop, self._results[index].said)
        return early

    def _raise_if_refused(self, stop: Stop, said: Said | None) -> None:
        match stop.reason:
            case StopReason.UNAVAILABLE:
                raise unavailable(extra=self._extension("unavailable", Phase.PROMPT))
            case StopReason.BLOCKED:
                raise prompt_block(
                    stop.code, said.text if said else None, self._extension("block", Phase.PROMPT)
                )
            case StopReason.REPLACED:
                return

    async def _drain(self, events: "_Events") -> None:
        while not all(result.closed for result in self._results):
            index, event = await events.get()
            self._results[index].take(event)
        for result in self._results:
            if result.closed and result.closed.stop and result.closed.stop.reason is StopReason.UNAVAILABLE:
                raise unavailable(extra=self._extension("unavailable", result.closed.phase))

    # --- streaming -------------------------------------------------------------------------------------------------

    async def _send_stream(self, early: list[tuple[int, Event]], events: "_Events", send: Send) -> None:
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
            **self._own_headers(),
        }
        raw_headers = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw_headers})

        async def write(data: bytes, *, more: bool = True) -> None:
            async with asyncio.timeout(_STALLED_S):
                await send({"type": "http.response.body", "body": data, "more_body": more})

        try:
            for index, event in early:
                await self._write_event(index, event, write)
            while not all(result.closed for result in self._results):
                try:
                    async with asyncio.timeout(_KEEP_ALIVE_S):
                        index, event = await events.get()
                except TimeoutError:
                    await write(b": keep-alive\n\n")
                    continue
                self._results[index].take(event)
                await self._write_event(index, event, write)
            if self._include_usage:
                await write(_sse(self._renderer.usage_chunk(self._usage())))
        except TimeoutError:
            self._service.metrics.stream_stalls.inc()
            return  # nobody reads: leaving cancels the choices, which frees their rows
        except Exception as error:  # noqa: BLE001  # headers are out: the failure must be told inside the stream
            await write(_sse(from_failure(error).body))
        await write(b"data: [DONE]\n\n", more=False)

    async def _write_event(self, index: int, event: Event, write: Any) -> None:
        for chunk in self._renderer.chunks(index, event, self._results[index]):
            if self._include_usage:
                chunk["usage"] = None
            if isinstance(event, Closed):
                chunk.update(self._extension_of([self._admitted.choices[index]]))
            await write(_sse(chunk))

    # --- what every shape carries ----------------------------------------------------------------------------------

    def _usage(self) -> Body:
        completion = sum(result.closed.num_completion_tokens for result in self._results if result.closed)
        prompt = self._admitted.num_prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _own_headers(self) -> dict[str, str]:
        headers = {
            "x-interlock-decision-id": self._admitted.decision_id,
            "x-interlock-policy": str(self._admitted.policy),
        }
        if not self._stream or not all(result.opened for result in self._results):
            headers["x-interlock-action"] = self._action_so_far()
        return headers

    def _action_so_far(self) -> str:
        action: str = self._extension_of(self._admitted.choices)["interlock"]["action"]
        return action

    def _extension_of(self, choices: Sequence[Choice]) -> Body:
        """The `interlock` object of a reply: the most severe thing that was done, never which rule or score."""
        outcomes = [choice.decider.outcome for choice in choices]
        for outcome in outcomes:
            if outcome.unavailable:
                return self._extension("unavailable", outcome.phase)
        worst = max(outcomes, key=lambda outcome: outcome.action)
        return self._extension(worst.action.name.lower(), worst.phase)

    def _extension(self, action: str, phase: Phase | None) -> Body:
        return {
            "interlock": {
                "decision_id": self._admitted.decision_id,
                "action": action,
                "phase": phase,
                "policy": str(self._admitted.policy),
            }
        }


def prompt_block(code: str, message: str | None, extra: Mapping[str, Any]) -> ApiError:
    """A request that was blocked before the model answered (conventions 1.6)."""
    text = message or "This request was blocked by policy."
    if code == "misalignment_policy_violation":
        error = ApiError(403, text, code=code, extra=dict(extra))
        error.body["error"]["misalignment"] = {
            "error_type": "other",
            "detailed_explanation": text,
            "review_target": None,
            "steer": {"message": text},
        }
        return error
    return ApiError(400, text, param="messages", code="content_filter", extra=dict(extra))


def _sse(body: Body) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


class _Events:
    """The events of several choices, in the order in which they come. A failed choice raises in the reader."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue(_BUFFERED_EVENTS)

    async def pump(self, service: Service, choice: Choice) -> None:
        try:
            async with aclosing(guarded(service.engine, choice, service.clock)) as events:
                async for event in events:
                    await self._queue.put((choice.index, event))
        except Exception as error:  # noqa: BLE001  # told to the reader
            await self._queue.put((choice.index, error))

    async def get(self) -> tuple[int, Event]:
        index, event = await self._queue.get()
        if isinstance(event, Exception):
            raise event
        return index, event


@asynccontextmanager
async def _running(service: Service, choices: Iterable[Choice]) -> AsyncIterator[_Events]:
    """Run the choices in tasks of their own; leaving cancels those that still run."""
    events = _Events()
    async with anyio.create_task_group() as group:
        for choice in choices:
            group.start_soon(events.pump, service, choice)
        yield events
        group.cancel_scope.cancel()
