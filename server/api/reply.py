"""How an admitted request is answered: the events of its choices become JSON or a stream, in one surface's shapes.

The status code is not sent before every choice was decided on its prompt. From then on a stream always ends with
finish reasons or an error event. When the client goes away, everything is cancelled at once.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import anyio
import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from guard.types import Phase, Stop, StopReason
from server.admitted import Admitted
from server.api.blocks import prompt_block, prompt_filter_results, reply_filter_results
from server.api.errors import ApiError, Body, from_failure, unavailable
from server.api.fields import obfuscation
from server.api.outbox import ClientStalledError, Outbox
from server.api.running import Events, GuardedResponse, Result
from server.keys.types import BlockStyle
from server.pipeline import Closed, Event, Said
from server.service import Service

_KEEP_ALIVE_S = 15.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request: its prompts, each counted once, and the responses of all its choices."""

    prompt: int
    completion: int

    @property
    def openai(self) -> Body:
        """The object of chat and text completions."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "completion_tokens_details": {"reasoning_tokens": 0},
        }


class Renderer(Protocol):
    """One surface's wire shape."""

    end: bytes
    """What follows the last event of a stream."""

    def events(self, index: int, event: Event, result: Result, extension: Body) -> Iterable[Body]:
        """The stream events that an event becomes. `extension` is empty but where a choice closes."""
        ...

    def last(self, results: list[Result], usage: Usage, extension: Body) -> Iterable[Body]:
        """The stream events after all choices have closed."""
        ...

    def opening(self, results: list[Result]) -> Iterable[Body]:
        """The stream events before those of the choices."""
        ...

    def failure(self, error: ApiError) -> Iterable[Body]:
        """The stream events that tell of a failure once the headers are out."""
        ...

    def frame(self, body: Body) -> bytes: ...

    def whole(self, results: list[Result], usage: Usage, extension: Body) -> Body:
        """The reply that is not streamed."""
        ...


class ChunkRenderer:
    """What the streams of chat and text completions share: chunks as data, `[DONE]` at the end."""

    end = b"data: [DONE]\n\n"

    def __init__(self, admitted: Admitted, *, include_usage: bool, obfuscates: bool) -> None:
        self._admitted = admitted
        self._include_usage = include_usage
        self._obfuscates = obfuscates
        self._is_azure = admitted.block_style is BlockStyle.AZURE

    def events(self, index: int, event: Event, result: Result, extension: Body) -> Iterable[Body]:
        for chunk in self.chunks(index, event, result):
            if self._is_azure and isinstance(event, Closed):
                chunk["choices"][0] |= reply_filter_results(result)
            if self._include_usage:
                chunk["usage"] = None
            if self._obfuscates:
                chunk["obfuscation"] = obfuscation(_text_of(chunk))
            yield {**chunk, **extension}

    def opening(self, results: list[Result]) -> Iterable[Body]:
        if self._is_azure:
            yield {**self.chunk([]), **self._of_prompts(results)}

    def last(self, results: list[Result], usage: Usage, extension: Body) -> Iterable[Body]:
        # clients trip over chunks without choices, so there is one only for those who asked
        asked: Body = {"usage": usage.openai} if self._include_usage else {}
        if "moderation" in extension:
            asked["moderation"] = extension["moderation"]
        if asked:
            yield {**self.chunk([]), **asked}

    def failure(self, error: ApiError) -> Iterable[Body]:
        yield error.body

    def frame(self, body: Body) -> bytes:
        return b"data: " + orjson.dumps(body) + b"\n\n"

    def whole(self, results: list[Result], usage: Usage, extension: Body) -> Body:
        body = {
            **self.shape([self.choice(index, result) for index, result in enumerate(results)]),
            "usage": usage.openai,
        }
        if self._is_azure:
            body |= self._of_prompts(results)
            for choice, result in zip(body["choices"], results, strict=True):
                choice.update(reply_filter_results(result))
        return {**body, **extension}

    def _of_prompts(self, results: list[Result]) -> Body:
        return prompt_filter_results(
            results, [id(choice.request.prompt_ids) for choice in self._admitted.choices]
        )

    def chunks(self, index: int, event: Event, result: Result) -> Iterable[Body]:
        raise NotImplementedError

    def choice(self, index: int, result: Result) -> Body:
        """One of a reply that is not streamed."""
        raise NotImplementedError

    def shape(self, choices: list[Body]) -> Body:
        raise NotImplementedError

    def chunk(self, choices: list[Body]) -> Body:
        raise NotImplementedError


def _text_of(chunk: Body) -> str:
    choice: Body = chunk["choices"][0]
    return str(choice.get("text") or choice.get("delta", {}).get("content") or "")


def named_event(body: Body) -> bytes:
    """A stream event whose name is its `type`, as /v1/responses and /v1/messages have it."""
    return b"event: " + str(body["type"]).encode() + b"\ndata: " + orjson.dumps(body) + b"\n\n"


class Reply(GuardedResponse):
    """The response to a request that generates."""

    def __init__(
        self,
        service: Service,
        admitted: Admitted,
        renderer: Renderer,
        *,
        stream: bool,
        moderation: Callable[[Admitted], Body] | None = None,
    ) -> None:
        """`moderation` makes the object of that name, where the request asks for it and may have it."""
        super().__init__(service, admitted)
        self._renderer = renderer
        self._stream = stream
        self._moderation = moderation

    async def _answer(self, events: Events, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            early = await self._until_decided(events)
            if self._stream:
                await self._send_stream(early, events, send)
                return
            await self._drain(events)
            response = self._whole()
        except Exception as error:  # noqa: BLE001  # whatever was raised, the client gets a well-formed answer
            response = from_failure(error).response(scope["path"])
        response.headers.update(self._own_headers())
        await response(scope, receive, send)

    def _whole(self) -> Response:
        for result in self._results:
            if result.unavailable and result.closed:
                raise unavailable(extra=self._extension("unavailable", result.closed.phase))
        body = self._renderer.whole(self._results, self._usage(), self._whole_extension())
        return Response(orjson.dumps(body), media_type="application/json")

    async def _until_decided(self, events: Events) -> list[tuple[int, Event]]:
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
            case StopReason.BLOCKED if self._admitted.block_style is not BlockStyle.REFUSAL_200:
                raise prompt_block(
                    stop.code,
                    said.text if said else None,
                    self._admitted.param,
                    self._extension("block", Phase.PROMPT),
                    self._admitted.block_style,
                )
            case StopReason.BLOCKED | StopReason.REPLACED:
                return

    # --- streaming -------------------------------------------------------------------------------------------------

    async def _send_stream(self, early: list[tuple[int, Event]], events: Events, send: Send) -> None:
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
            **self._own_headers(),
        }
        raw_headers = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw_headers})

        outbox = Outbox(send, self._service.stream_stalled_s)
        async with anyio.create_task_group() as sending:
            sending.start_soon(outbox.run)
            try:
                await self._write_stream(early, events, outbox)
            except ClientStalledError:  # leaving cancels the choices, which frees their rows
                self._stalled()
                sending.cancel_scope.cancel()

    async def _write_stream(self, early: list[tuple[int, Event]], events: Events, outbox: Outbox) -> None:
        """Raises ClientStalledError."""
        try:
            for body in self._renderer.opening(self._results):
                await outbox.put(self._renderer.frame(body))
            for index, event in early:
                await self._write_event(index, event, outbox)
            while not all(result.closed for result in self._results):
                try:
                    async with asyncio.timeout(_KEEP_ALIVE_S):
                        index, event = await events.get()
                except TimeoutError:
                    await outbox.put(b": keep-alive\n\n")
                    continue
                self._results[index].take(event)
                await self._write_event(index, event, outbox)
            for body in self._renderer.last(self._results, self._usage(), self._whole_extension()):
                await outbox.put(self._renderer.frame(body))
        except ClientStalledError:
            raise
        except Exception as error:  # noqa: BLE001  # headers are out: the failure must be told inside the stream
            for body in self._renderer.failure(from_failure(error)):
                await outbox.put(self._renderer.frame(body))
        await outbox.finish(self._renderer.end)

    async def _write_event(self, index: int, event: Event, outbox: Outbox) -> None:
        extension = self._extension_of([self._admitted.choices[index]]) if isinstance(event, Closed) else {}
        for body in self._renderer.events(index, event, self._results[index], extension):
            await outbox.put(self._renderer.frame(body))

    # --- what every shape carries ----------------------------------------------------------------------------------

    def _whole_extension(self) -> Body:
        extension = self._extension_of(self._admitted.choices)
        if self._moderation is not None:
            extension["moderation"] = self._moderation(self._admitted)
        return extension

    def _usage(self) -> Usage:
        completion = sum(result.closed.num_completion_tokens for result in self._results if result.closed)
        return Usage(self._admitted.num_prompt_tokens, completion)

    def _own_headers(self) -> dict[str, str]:
        headers = self._guard_headers()
        if not self._stream or not all(result.opened for result in self._results):
            headers["x-interlock-action"] = self._action_so_far()
        return headers
