"""POST /v1/responses: stateless, in text; the same run as a chat completion, told in items, parts and typed events."""

from collections.abc import Iterable

from fastapi import Request
from starlette.responses import Response

from server.admission import Admission
from server.admitted import Admitted
from server.api.described import ResponseObject, whole_or_streamed
from server.api.errors import ApiError, Body
from server.api.fields import obfuscation
from server.api.logprobs import logprob_entries
from server.api.reply import Reply, Usage, named_event
from server.api.responses_schema import ResponsesRequest
from server.api.routing import Router
from server.api.running import Result
from server.api.verdicts import check_may_see_scores, moderation_pair
from server.pipeline import Closed, Delta, Event, Opened, Said
from server.service import Service

router = Router()


@router.post("/v1/responses", response_class=Response, responses=whole_or_streamed(ResponseObject))
async def create(body: ResponsesRequest, request: Request) -> Response:
    service: Service = request.app.state.service
    moderation = None
    if body.moderation is not None:
        check_may_see_scores(request, body.moderation.model)
        moderation = moderation_pair
    service.metrics.unknown_fields.inc(body.num_unknown_fields)
    admitted = await Admission.of(request).chat(body.as_chat(), request.state.request_id, "responses")
    return Reply(
        service,
        admitted,
        ResponsesRenderer(admitted, body),
        stream=bool(body.stream),
        moderation=moderation,
    )


class ResponsesRenderer:
    """The shapes of `response` and of its stream events. One message is the output; its parts are text, then a refusal."""

    end = b""

    def __init__(self, admitted: Admitted, body: ResponsesRequest) -> None:
        self._body = body
        self._admitted = admitted
        self._id = f"resp_{admitted.decision_id}"
        self._item_id = f"msg_{admitted.decision_id}"
        self._obfuscates = bool(body.stream_options and body.stream_options.include_obfuscation)
        self._sequence = 0
        self._begun = False
        self._parts: list[Body] = []  # as they were streamed so far
        self._is_open = False  # whether the last of them goes on

    def frame(self, body: Body) -> bytes:
        return named_event(body)

    # --- the stream --------------------------------------------------------------------------------------------------

    def opening(self, results: list[Result]) -> Iterable[Body]:
        return ()

    def events(self, index: int, event: Event, result: Result, extension: Body) -> Iterable[Body]:
        match event:
            case Opened():
                yield from self._begin()
            case Delta(tokens):
                entries = logprob_entries(tokens)
                if event.text or entries:
                    yield from self._say(event.text, entries)
            case Said(text, refusal):
                yield from self._begin()
                if not refusal:
                    yield from self._say(text, [])
            case Closed():
                yield from self._begin()
                if result.finish_reason == "content_filter":
                    yield from self._refuse(result.refusal)
                elif not self._parts:
                    yield from self._say("", [])
                yield from self._close_part()
                item = self._item(_status(result), self._parts)
                yield self._event("response.output_item.done", output_index=0, item=item)

    def last(self, results: list[Result], usage: Usage, extension: Body) -> Iterable[Body]:
        (result,) = results
        status = _status(result)
        response = {**self._ended(result, usage, self._parts), **extension}
        yield self._event(f"response.{status}", response=response)

    def failure(self, error: ApiError) -> Iterable[Body]:
        told = error.body["error"]
        if self._begun:
            error_of_response = {"code": "server_error", "message": told["message"]}
            yield self._event("response.failed", response=self._response("failed", error=error_of_response))
        # `error` beside the event's own fields: the stock client raises on it, and would take the end for success without
        own = {"code": told["code"], "message": told["message"], "param": told["param"]}
        yield self._event("error", **own, **error.body)

    def _begin(self) -> Iterable[Body]:
        if self._begun:
            return
        self._begun = True
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))
        item = self._item("in_progress", [])
        yield self._event("response.output_item.added", output_index=0, item=item)

    def _say(self, text: str, entries: list[Body]) -> Iterable[Body]:
        if not self._is_open:
            yield from self._open_part(_text_part("", []))
        part = self._parts[-1]
        part["text"] += text
        part["logprobs"].extend(entries)
        padding = {"obfuscation": obfuscation(text)} if self._obfuscates else {}
        yield self._part_event("response.output_text.delta", delta=text, logprobs=entries, **padding)

    def _refuse(self, text: str) -> Iterable[Body]:
        yield from self._close_part()
        yield from self._open_part({"type": "refusal", "refusal": ""})
        self._parts[-1]["refusal"] = text
        yield self._part_event("response.refusal.delta", delta=text)

    def _open_part(self, part: Body) -> Iterable[Body]:
        self._parts.append(part)
        self._is_open = True
        yield self._part_event("response.content_part.added", part=dict(part))

    def _close_part(self) -> Iterable[Body]:
        if not self._is_open:
            return
        self._is_open = False
        part = self._parts[-1]
        if part["type"] == "refusal":
            yield self._part_event("response.refusal.done", refusal=part["refusal"])
        else:
            yield self._part_event("response.output_text.done", text=part["text"], logprobs=part["logprobs"])
        yield self._part_event("response.content_part.done", part=part)

    def _part_event(self, kind: str, **fields: object) -> Body:
        return self._event(
            kind, item_id=self._item_id, output_index=0, content_index=len(self._parts) - 1, **fields
        )

    def _event(self, kind: str, **fields: object) -> Body:
        self._sequence += 1
        return {"type": kind, "sequence_number": self._sequence - 1, **fields}

    # --- the objects -------------------------------------------------------------------------------------------------

    def whole(self, results: list[Result], usage: Usage, extension: Body) -> Body:
        (result,) = results
        if result.finish_reason == "content_filter":
            parts = [{"type": "refusal", "refusal": result.refusal}]
        elif result.said is not None:
            parts = [_text_part(result.said.text, [])]
        else:
            parts = [_text_part(result.text, logprob_entries(result.tokens))]
        return {**self._ended(result, usage, parts), **extension}

    def _ended(self, result: Result, usage: Usage, parts: list[Body]) -> Body:
        status, reason = _status(result), result.finish_reason
        named = "content_filter" if reason == "content_filter" else "max_output_tokens"
        return self._response(
            status,
            output=[self._item(status, parts)],
            incomplete_details={"reason": named} if status == "incomplete" else None,
            usage={
                "input_tokens": usage.prompt,
                "input_tokens_details": {
                    "cached_tokens": 0
                },  # required; engines don't tell of their prefix caches
                "output_tokens": usage.completion,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt + usage.completion,
            },
        )

    def _format(self) -> Body:
        if self._body.text is None or self._body.text.format is None:
            return {"type": "text"}
        return self._body.text.format.model_dump(by_alias=True)

    def _item(self, status: str, parts: list[Body]) -> Body:
        return {
            "id": self._item_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": parts,
        }

    def _response(self, status: str, **changes: object) -> Body:
        body = self._body
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._admitted.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": self._admitted.subject.model,
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": self._format()},
            "tool_choice": "none",
            "tools": [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
            "metadata": body.metadata or {},
            **changes,
        }


def _status(result: Result) -> str:
    return "completed" if result.finish_reason == "stop" else "incomplete"


def _text_part(text: str, entries: list[Body]) -> Body:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": entries}
