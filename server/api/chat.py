"""POST /v1/chat/completions."""

from collections.abc import Collection, Iterable, Sequence

from fastapi import Request
from starlette.responses import Response

from server.admission import Admission
from server.admitted import Admitted
from server.api.described import ChatCompletion, whole_or_streamed
from server.api.errors import Body
from server.api.logprobs import logprob_entries
from server.api.reply import ChunkRenderer, Reply
from server.api.routing import Router
from server.api.running import Result
from server.api.schema import ChatRequest
from server.api.verdicts import check_may_see_scores, moderation_results
from server.engines.base import FinishReason, Token
from server.pipeline import Closed, Delta, Event, Opened, Said
from server.service import Service
from server.tool_calls import Piece, ToolCall, ToolCallReader

router = Router()


@router.post("/v1/chat/completions", response_class=Response, responses=whole_or_streamed(ChatCompletion))
async def create(body: ChatRequest, request: Request) -> Response:
    service: Service = request.app.state.service
    moderation = None
    if body.moderation is not None:
        check_may_see_scores(request, body.moderation.model)
        moderation = moderation_results
    admitted = await Admission.of(request).chat(body, request.state.request_id)
    renderer = ChatRenderer(
        service,
        admitted,
        logprobs=bool(body.logprobs),
        tools=[tool.function.name for tool in body.offered],
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
        tools: Collection[str],
        include_usage: bool,
        obfuscates: bool,
    ) -> None:
        super().__init__(admitted, include_usage=include_usage, obfuscates=obfuscates)
        self._logprobs = logprobs
        self._tools = tools  # names of those on offer
        self._readers = [ToolCallReader(tools) for _ in admitted.choices]
        self._num_called = [0] * len(admitted.choices)  # calls that were streamed
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
                yield from self._pieces(index, self._read(index, event.text), logprobs)
            case Said(text, refusal):
                opening = {} if result.opened else {"role": "assistant"}
                yield self._of_choice(index, {**opening, "refusal" if refusal else "content": text})
            case Closed(stop=None):
                yield from self._pieces(index, self._readers[index].end(), None)
                yield self._of_choice(index, {}, finish=_finish(result, self._readers[index]))
            case Closed():
                yield self._of_choice(index, {}, finish=result.finish_reason)

    def _read(self, index: int, text: str) -> list[Piece]:
        if self._tools:
            return self._readers[index].feed(text)
        return [text] if text else []

    def _pieces(self, index: int, pieces: Sequence[Piece], logprobs: Body | None) -> Iterable[Body]:
        """One chunk per piece of a reply. Log-probabilities go with the first, and leave even where the text must wait."""
        for piece in pieces or ([""] if logprobs else []):
            match piece:
                case str():
                    yield self._of_choice(index, {"content": piece}, logprobs=logprobs)
                case ToolCall():
                    call = {"index": self._num_called[index], **_call(piece)}
                    self._num_called[index] += 1
                    yield self._of_choice(index, {"tool_calls": [call]}, logprobs=logprobs)
            logprobs = None

    def _of_choice(
        self, index: int, delta: Body, *, logprobs: Body | None = None, finish: str | None = None
    ) -> Body:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self.chunk([choice])

    def chunk(self, choices: list[Body]) -> Body:
        return {**self._common, "object": "chat.completion.chunk", "choices": choices}

    def shape(self, choices: list[Body]) -> Body:
        return {**self._common, "object": "chat.completion", "choices": choices}

    def choice(self, index: int, result: Result) -> Body:
        reader = ToolCallReader(self._tools)
        pieces = [*reader.feed(result.text), *reader.end()] if self._tools else [result.text]
        content: str | None = "".join(piece for piece in pieces if isinstance(piece, str))
        calls = [_call(piece) for piece in pieces if isinstance(piece, ToolCall)]
        refusal: str | None = None
        logprobs = _logprobs(result.tokens) if self._logprobs else None
        finish = _finish(result, reader)
        if result.said is not None and not result.said.refusal:
            content, calls, logprobs = result.said.text, [], None
        if finish == "content_filter":
            content, calls, logprobs, refusal = None, [], None, result.refusal
        message: Body = {"role": "assistant", "content": content, "refusal": refusal, "annotations": []}
        if calls:
            message |= {"content": content or None, "tool_calls": calls}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}


def _finish(result: Result, reader: ToolCallReader) -> str:
    """A reply that the model itself ended after calls says so; one that was cut or stopped says that."""
    own = result.finish_reason
    return "tool_calls" if own == FinishReason.STOP and result.said is None and reader.num_calls else own


def _call(call: ToolCall) -> Body:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _logprobs(tokens: Sequence[Token]) -> Body | None:
    entries = logprob_entries(tokens)
    return {"content": entries, "refusal": None} if entries else None
