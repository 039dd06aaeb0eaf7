"""POST /v1/chat/completions."""

from collections.abc import Iterable, Sequence

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.admission import Admission, Admitted
from server.api.errors import Body
from server.api.logprobs import logprob_entries
from server.api.reply import ChunkRenderer, Reply, Usage
from server.api.running import Result
from server.api.schema import ChatRequest
from server.api.verdicts import check_may_see_scores, moderation_results
from server.engines.base import Token
from server.pipeline import Closed, Delta, Event, Opened, Said
from server.service import Service

router = APIRouter()


@router.post("/v1/chat/completions")
async def create(body: ChatRequest, request: Request) -> Response:
    service: Service = request.app.state.service
    moderation = None
    if body.moderation is not None:
        check_may_see_scores(request, body.moderation.model)
        moderation = moderation_results
    admitted = await Admission(service, request.state.client).chat(body, request.state.request_id)
    renderer = ChatRenderer(
        service,
        admitted,
        logprobs=bool(body.logprobs),
        include_usage=body.include_usage,
        obfuscates=body.obfuscates,
    )
    return Reply(service, admitted, renderer, stream=bool(body.stream), moderation=moderation)


class ChatRenderer(ChunkRenderer):
    """The shapes of `chat.completion` and `chat.completion.chunk`."""

    def __init__(
        self,
        service: Service,
        admitted: Admitted,
        *,
        logprobs: bool,
        include_usage: bool,
        obfuscates: bool,
    ) -> None:
        super().__init__(include_usage=include_usage, obfuscates=obfuscates)
        self._logprobs = logprobs
        self._common = {
            "id": f"chatcmpl-{admitted.decision_id}",
            "created": admitted.created,
            "model": admitted.subject.model,
            "system_fingerprint": service.system_fingerprint(admitted.policy),
        }

    def chunks(self, index: int, event: Event, result: Result) -> Iterable[Body]:
        match event:
            case Opened():
                yield self._of_choice(index, {"role": "assistant", "content": ""})
            case Delta(tokens):
                logprobs = _logprobs(tokens) if self._logprobs else None
                if event.text or logprobs:
                    yield self._of_choice(index, {"content": event.text}, logprobs=logprobs)
            case Said(text, refusal):
                opening = {} if result.opened else {"role": "assistant"}
                yield self._of_choice(index, {**opening, "refusal" if refusal else "content": text})
            case Closed():
                yield self._of_choice(index, {}, finish=result.finish_reason)

    def _of_choice(
        self, index: int, delta: Body, *, logprobs: Body | None = None, finish: str | None = None
    ) -> Body:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self.chunk([choice])

    def chunk(self, choices: list[Body]) -> Body:
        return {**self._common, "object": "chat.completion.chunk", "choices": choices}

    def whole(self, results: list[Result], usage: Usage, extension: Body) -> Body:
        choices = [self._choice(index, result) for index, result in enumerate(results)]
        return {
            **self._common,
            "object": "chat.completion",
            "choices": choices,
            "usage": usage.openai,
            **extension,
        }

    def _choice(self, index: int, result: Result) -> Body:
        content: str | None = result.text
        refusal: str | None = None
        logprobs = _logprobs(result.tokens) if self._logprobs else None
        finish = result.finish_reason
        if result.said is not None and not result.said.refusal:
            content, logprobs = result.said.text, None
        if finish == "content_filter":
            content, logprobs = None, None
            refusal = result.refusal
        message: Body = {"role": "assistant", "content": content, "refusal": refusal, "annotations": []}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}


def _logprobs(tokens: Sequence[Token]) -> Body | None:
    entries = logprob_entries(tokens)
    return {"content": entries, "refusal": None} if entries else None
