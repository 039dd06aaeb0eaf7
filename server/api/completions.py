"""POST /v1/completions: text or token ids in, text out; `echo` with `logprobs` scores the prompt itself."""

from collections.abc import Iterable, Sequence

from fastapi import Request
from starlette.responses import Response

from server.admission import Admission
from server.admitted import Admitted
from server.api.described import TextCompletion, whole_or_streamed
from server.api.errors import Body
from server.api.reply import ChunkRenderer, Reply
from server.api.routing import Router
from server.api.running import Result
from server.api.schema import CompletionRequest
from server.engines.base import FinishReason, StepOutput, Token, TokenLogprob
from server.pipeline import Closed, Delta, Event, Opened, Said
from server.service import Service

router = Router()


@router.post("/v1/completions", response_class=Response, responses=whole_or_streamed(TextCompletion))
async def create(body: CompletionRequest, request: Request) -> Response:
    service: Service = request.app.state.service
    admitted = await Admission.of(request).completions(body, request.state.request_id)
    renderer = CompletionRenderer(
        service,
        admitted,
        echo=body.echo,
        logprobs=body.logprobs is not None,
        include_usage=body.include_usage,
        obfuscates=body.obfuscates,
    )
    return Reply(service, admitted, renderer, stream=bool(body.stream))


class CompletionRenderer(ChunkRenderer):
    """The shape of `text_completion`, which streamed chunks share."""

    def __init__(
        self,
        service: Service,
        admitted: Admitted,
        *,
        echo: bool,
        logprobs: bool,
        include_usage: bool,
        obfuscates: bool,
    ) -> None:
        super().__init__(admitted, include_usage=include_usage, obfuscates=obfuscates)
        self._service = service
        self._echo = echo
        self._logprobs = logprobs
        self._offsets = [0] * len(admitted.choices)  # characters sent so far, per choice
        self._common = {
            "id": f"cmpl-{admitted.decision_id}",
            "object": "text_completion",
            "created": admitted.created,
            "model": admitted.subject.model,
            "system_fingerprint": service.system_fingerprint(admitted.policy),
        }

    def chunks(self, index: int, event: Event, result: Result) -> Iterable[Body]:
        match event:
            case Opened(step):
                if self._echo:
                    yield self._of_choice(index, self._prompt_text(index), self._prompt_logprobs(index, step))
            case Delta(tokens):
                yield self._of_choice(index, event.text, self._token_logprobs(tokens, self._offsets[index]))
            case Said(text, refusal):
                if not refusal:
                    yield self._of_choice(index, text, None)
            case Closed():
                ended = self._end_logprobs(result, self._offsets[index])
                yield self._of_choice(index, "", ended, finish=result.finish_reason)

    def _of_choice(self, index: int, text: str, logprobs: Body | None, *, finish: str | None = None) -> Body:
        self._offsets[index] += len(text)
        return self.chunk([{"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}])

    def chunk(self, choices: list[Body]) -> Body:
        return self.shape(choices)

    def shape(self, choices: list[Body]) -> Body:
        return {**self._common, "choices": choices}

    def choice(self, index: int, result: Result) -> Body:
        text, logprobs = "", None
        if self._echo and result.opened is not None:
            text, logprobs = self._prompt_text(index), self._prompt_logprobs(index, result.opened)
        if result.said is not None and not result.said.refusal:
            text, logprobs = text + result.said.text, None
        else:
            logprobs = _joined(logprobs, self._token_logprobs(result.tokens, len(text)))
            text += result.text
            logprobs = _joined(logprobs, self._end_logprobs(result, len(text)))
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": result.finish_reason}

    def _prompt_text(self, index: int) -> str:
        return self._service.tokenizer.decode(self._admitted.choices[index].request.prompt_ids)

    def _prompt_logprobs(self, index: int, step: StepOutput) -> Body | None:
        if not self._logprobs or step.prompt_logprobs is None:
            return None
        offset, entries = 0, []
        for token_id, judged in zip(
            self._admitted.choices[index].request.prompt_ids, step.prompt_logprobs, strict=True
        ):
            text = judged[0].text if judged else self._service.tokenizer.decode([token_id])
            entries.append((text, offset, judged))
            offset += len(text)
        return _legacy(entries)

    def _token_logprobs(self, tokens: Sequence[Token], offset: int) -> Body | None:
        if not self._logprobs or not tokens:
            return None
        entries = []
        for token in tokens:
            judged = None if token.logprob is None else (token.logprob, token.top_logprobs)
            entries.append((token.logprob.text if token.logprob else token.text, offset, judged))
            offset += len(token.text)
        return _legacy(entries)

    def _end_logprobs(self, result: Result, offset: int) -> Body | None:
        """The place of an end-of-sequence token among those of an echoed prompt.

        It is never shown, but clients that score a prompt (lm-evaluation-harness) drop the last entry as the generated
        token's, and without this one would drop the prompt's.
        """
        closed = result.closed
        if not (self._echo and self._logprobs and closed is not None and closed.stop is None):
            return None
        ended_by_token = closed.finish is FinishReason.STOP and not closed.by_stop_string
        return _legacy([("", offset, None)]) if ended_by_token else None


_Entry = tuple[str, int, tuple[TokenLogprob, tuple[TokenLogprob, ...]] | None]


def _legacy(entries: Sequence[_Entry]) -> Body:
    """OpenAI's older log-probability shape: parallel lists."""
    return {
        "tokens": [text for text, _, _ in entries],
        "token_logprobs": [judged[0].logprob if judged else None for _, _, judged in entries],
        "top_logprobs": [
            {top.text: top.logprob for top in (judged[0], *judged[1])} if judged else None
            for _, _, judged in entries
        ],
        "text_offset": [offset for _, offset, _ in entries],
    }


def _joined(first: Body | None, second: Body | None) -> Body | None:
    if first is None or second is None:
        return first or second
    return {key: first[key] + second[key] for key in first}
