"""POST /v1/messages, as Anthropic's clients speak it: the same run as a chat completion, told in content blocks."""

from collections.abc import Iterable

from fastapi import Request
from starlette.responses import Response

from server.admission import Admission
from server.admitted import Admitted
from server.api.described import ANTHROPIC_ERRORS, Message, whole_or_streamed
from server.api.errors import ApiError, Body, anthropic_body
from server.api.messages_schema import CountRequest, MessagesRequest
from server.api.reply import Reply, Usage, named_event
from server.api.routing import Router
from server.api.running import Result
from server.engines.base import FinishReason
from server.pipeline import Closed, Delta, Event, Opened, Said
from server.prompts import check_model, conversation
from server.service import Service

router = Router(responses=ANTHROPIC_ERRORS)


@router.post("/v1/messages", response_class=Response, responses=whole_or_streamed(Message))
async def create(body: MessagesRequest, request: Request) -> Response:
    service: Service = request.app.state.service
    service.metrics.unknown_fields.inc(body.num_unknown_fields)
    admitted = await Admission.of(request).chat(body.as_chat(), request.state.request_id, "messages")
    renderer = MessagesRenderer(admitted, body.stop_sequences or [])
    return Reply(service, admitted, renderer, stream=bool(body.stream))


@router.post("/v1/messages/count_tokens")
async def count_tokens(body: CountRequest, request: Request) -> Body:
    """How many tokens the prompt of such a request has."""
    service: Service = request.app.state.service
    check_model(service, body.model)
    service.metrics.unknown_fields.inc(body.num_unknown_fields)
    prompt = await conversation(service, list(body.conversation()), "messages")
    return {"input_tokens": len(prompt.ids)}


class MessagesRenderer:
    """The shapes of `message` and of its stream events. There is one block of text, or none."""

    end = b""

    def __init__(self, admitted: Admitted, stop_sequences: list[str]) -> None:
        self._admitted = admitted
        self._stop_sequences = stop_sequences
        self._has_begun = False
        self._has_block = False

    def frame(self, body: Body) -> bytes:
        return named_event(body)

    def opening(self, results: list[Result]) -> Iterable[Body]:
        return ()

    def events(self, index: int, event: Event, result: Result, extension: Body) -> Iterable[Body]:
        match event:
            case Opened():
                yield from self._begin()
            case Delta():
                if event.text:
                    yield from self._say(event.text)
            case Said(text, refusal):
                if not refusal:
                    yield from self._say(text)
            case Closed():
                yield from self._begin()
                if self._has_block:
                    yield {"type": "content_block_stop", "index": 0}

    def last(self, results: list[Result], usage: Usage, extension: Body) -> Iterable[Body]:
        (result,) = results
        yield {
            "type": "message_delta",
            "delta": self._stop(result),
            "usage": {"output_tokens": usage.completion},
            **extension,
        }
        yield {"type": "message_stop"}

    def failure(self, error: ApiError) -> Iterable[Body]:
        yield anthropic_body(error)

    def _begin(self) -> Iterable[Body]:
        if not self._has_begun:
            self._has_begun = True
            usage = Usage(self._admitted.num_prompt_tokens, 0)
            nothing = {"stop_reason": None, "stop_sequence": None}
            yield {"type": "message_start", "message": self._message([], nothing, usage)}

    def _say(self, text: str) -> Iterable[Body]:
        yield from self._begin()
        if not self._has_block:
            self._has_block = True
            yield {"type": "content_block_start", "index": 0, "content_block": _block("")}
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}

    def whole(self, results: list[Result], usage: Usage, extension: Body) -> Body:
        (result,) = results
        text = "" if result.finish_reason == "content_filter" else result.text
        if result.said is not None and not result.said.refusal:
            text = result.said.text
        content = [_block(text)] if text else []
        return {**self._message(content, self._stop(result), usage), **extension}

    def _message(self, content: list[Body], stop: Body, usage: Usage) -> Body:
        return {
            "id": f"msg_{self._admitted.decision_id}",
            "type": "message",
            "role": "assistant",
            "model": self._admitted.subject.model,
            "content": content,
            **stop,
            "usage": {"input_tokens": usage.prompt, "output_tokens": usage.completion},
        }

    def _stop(self, result: Result) -> Body:
        """Why it ended. Which of several stop sequences it was is not known, so only a single one is named."""
        if result.finish_reason == "content_filter":
            details = {"type": "refusal", "category": None, "explanation": result.refusal}
            return {"stop_reason": "refusal", "stop_sequence": None, "stop_details": details}
        if result.finish_reason == FinishReason.LENGTH:
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        if result.closed and result.closed.by_stop_string:
            only = self._stop_sequences[0] if len(self._stop_sequences) == 1 else None
            return {"stop_reason": "stop_sequence", "stop_sequence": only}
        return {"stop_reason": "end_turn", "stop_sequence": None}


def _block(text: str) -> Body:
    return {"type": "text", "text": text}
