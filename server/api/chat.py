"""POST /v1/chat/completions."""

from collections.abc import Iterable, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.admission import Admission, Admitted
from server.api.errors import Body
from server.api.reply import Reply, Result
from server.api.schema import ChatRequest
from server.engines.base import Token, TokenLogprob
from server.pipeline import Closed, Delta, Event, Opened, Said
from server.service import Service

router = APIRouter()


@router.post("/v1/chat/completions")
async def create(body: ChatRequest, request: Request) -> Response:
    service: Service = request.app.state.service
    admitted = await Admission(service).chat(body, request.state.request_id)
    renderer = ChatRenderer(service, admitted, logprobs=bool(body.logprobs))
    return Reply(service, admitted, renderer, stream=bool(body.stream), usage=body.include_usage)


class ChatRenderer:
    """The shapes of `chat.completion` and `chat.completion.chunk`."""

    def __init__(self, service: Service, admitted: Admitted, *, logprobs: bool) -> None:
        self._logprobs = logprobs
        self._id = f"chatcmpl-{admitted.decision_id}"
        self._common = {
            "created": admitted.created,
            "model": admitted.subject.model,
            "system_fingerprint": service.system_fingerprint(admitted.policy),
        }

    def chunks(self, index: int, event: Event, result: Result) -> Iterable[Body]:
        match event:
            case Opened():
                yield self._chunk(index, {"role": "assistant", "content": ""})
            case Delta(tokens):
                logprobs = _logprobs(tokens) if self._logprobs else None
                if event.text or logprobs:
                    yield self._chunk(index, {"content": event.text}, logprobs=logprobs)
            case Said(text, refusal):
                opening = {} if result.opened else {"role": "assistant"}
                yield self._chunk(index, {**opening, "refusal" if refusal else "content": text})
            case Closed():
                yield self._chunk(index, {}, finish=result.finish_reason)

    def _chunk(
        self, index: int, delta: Body, *, logprobs: Body | None = None, finish: str | None = None
    ) -> Body:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {"id": self._id, "object": "chat.completion.chunk", **self._common, "choices": [choice]}

    def usage_chunk(self, usage: Body) -> Body:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            **self._common,
            "choices": [],
            "usage": usage,
        }

    def whole(self, results: list[Result], usage: Body) -> Body:
        choices = [self._choice(index, result) for index, result in enumerate(results)]
        return {
            "id": self._id,
            "object": "chat.completion",
            **self._common,
            "choices": choices,
            "usage": usage,
        }

    def _choice(self, index: int, result: Result) -> Body:
        content: str | None = "".join(token.text for token in result.tokens)
        refusal: str | None = None
        logprobs = _logprobs(result.tokens) if self._logprobs else None
        finish = result.finish_reason
        if result.said is not None and not result.said.refusal:
            content, logprobs = result.said.text, None
        if finish == "content_filter":
            content, logprobs = None, None
            refusal = result.said.text if result.said else "This reply was withheld by policy."
        message = {"role": "assistant", "content": content, "refusal": refusal}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}


def _logprobs(tokens: Sequence[Token]) -> dict[str, Any] | None:
    entries = [
        {**_entry(token.logprob), "top_logprobs": [_entry(top) for top in token.top_logprobs]}
        for token in tokens
        if token.logprob is not None
    ]
    return {"content": entries, "refusal": None} if entries else None


def _entry(item: TokenLogprob) -> Body:
    return {"token": item.text, "logprob": max(item.logprob, -9999.0), "bytes": list(item.token_bytes)}
