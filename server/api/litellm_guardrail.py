"""POST /beta/litellm_basic_guardrail_api: LiteLLM's Generic Guardrail API, so that its users can ask the monitors.

What LiteLLM is about to send or return is read, in prefill only. It is the policy's prompt rules that decide, for here
all text is prompt; steering has no effect.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import orjson
from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from guard.types import Phase, StopReason
from server.admission import Admission
from server.admitted import Admitted, Caller
from server.api.described import GuardrailAnswer, whole
from server.api.errors import Body, bad_request, from_failure, unavailable
from server.api.fields import Text, refused
from server.api.routing import Router
from server.api.running import Events, GuardedResponse, Result
from server.api.schema import MAX_MESSAGES, TextPart
from server.service import Service
from server.tokenizer import Message

router = Router()

_LOOSE = ConfigDict(extra="ignore", frozen=True)
_MAX_READ = 64  # prompts of one call; the messages are one of them
_VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_BLOCKED = "This content was blocked by policy."


class _Function(BaseModel):
    model_config = _LOOSE

    name: Text | None = None
    arguments: Text | None = None


class _ToolCall(BaseModel):
    model_config = _LOOSE

    function: _Function | None = None

    @property
    def text(self) -> str:
        return self.function.arguments or "" if self.function else ""


class _Message(BaseModel):
    """A row of the conversation. What a tool returned is read like what a user wrote: both come from outside."""

    model_config = _LOOSE

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    tool_calls: list[_ToolCall] | None = None

    @property
    def text(self) -> str:
        parts = self.content if isinstance(self.content, list) else []
        own = self.content if isinstance(self.content, str) else "".join(part.text for part in parts)
        return "\n".join(filter(None, [own, *(call.text for call in self.tool_calls or ())]))

    @property
    def row(self) -> Message:
        roles = {"developer": "system", "tool": "user", "function": "user"}
        return {"role": roles.get(self.role, self.role), "content": self.text}


class _RequestData(BaseModel):
    model_config = _LOOSE

    user_api_key_end_user_id: Text | None = None


class GuardrailRequest(BaseModel):
    """What LiteLLM asks. Definitions of tools are the application's own, and are not read."""

    model_config = _LOOSE

    input_type: Literal["request", "response"]
    texts: Annotated[list[Text], Field(max_length=MAX_MESSAGES)] | None = None
    images: list[Any] | None = None
    tool_calls: Annotated[list[_ToolCall], Field(max_length=MAX_MESSAGES)] | None = None
    structured_messages: Annotated[list[_Message], Field(max_length=MAX_MESSAGES, fail_fast=True)] | None = (
        None
    )
    request_data: _RequestData = _RequestData()
    litellm_call_id: str | None = None

    @model_validator(mode="after")
    def _refuse_images(self) -> Self:
        if self.images:
            raise refused("images", "monitors read text only, so a request with images can't be judged")
        return self

    def conversations(self) -> list[tuple[int | None, list[Message]]]:
        """What is read, each with the index of the text that it judges, where it judges a single one."""
        told = [message.row for message in self.structured_messages or ()]
        texts = list(enumerate(self.texts or ()))
        calls = [(None, call.text) for call in self.tool_calls or ()]
        if self.input_type == "response":
            before = told or [{"role": "user", "content": ""}]  # templates want the user's turn first
            return [
                (index, [*before, {"role": "assistant", "content": text}])
                for index, text in [*texts, *calls]
                if text
            ]
        whole = "\n".join(message["content"] for message in told)
        others = [(index, text) for index, text in texts if text not in whole]
        alone = [(index, [{"role": "user", "content": text}]) for index, text in [*others, *calls] if text]
        return [(None, told), *alone] if whole else alone


@router.post("/beta/litellm_basic_guardrail_api", response_class=Response, responses=whole(GuardrailAnswer))
async def check(body: GuardrailRequest, request: Request) -> Response:
    service: Service = request.app.state.service
    conversations = body.conversations()
    if not conversations:
        return Response(orjson.dumps({"action": "NONE"}), media_type="application/json")
    if len(conversations) > _MAX_READ:
        told = f"{len(conversations)} texts beside the messages are too many to read; at most {_MAX_READ}"
        raise bad_request(told, "texts")
    call_id = body.litellm_call_id or ""  # the client of LiteLLM may have made it up
    request_id = call_id if _VALID_ID.fullmatch(call_id) else request.state.request_id
    caller = Caller(request_id, {}, body.request_data.user_api_key_end_user_id or "")
    admitted = await Admission.of(request).scoring(
        "moderations", service.engine.info.model_id, [messages for _, messages in conversations], caller
    )
    return _Answer(service, admitted, body, [index for index, _ in conversations])


class _Answer(GuardedResponse):
    """NONE, BLOCKED, or GUARDRAIL_INTERVENED with other texts; a 503 where the guard could not judge."""

    def __init__(
        self, service: Service, admitted: Admitted, body: GuardrailRequest, judged: Sequence[int | None]
    ) -> None:
        super().__init__(service, admitted)
        self._body = body
        self._judged = judged  # by choice: the index of its text

    async def _answer(self, events: Events, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._drain(events)
            if any(result.unavailable for result in self._results):
                raise unavailable(extra=self._extension("unavailable", Phase.PROMPT))  # noqa: TRY301  # one place answers
            told = {**self._action(), **self._extension_of(self._admitted.choices)}
            response = Response(orjson.dumps(told), media_type="application/json")
        except Exception as error:  # noqa: BLE001  # whatever was raised, the client gets a well-formed answer
            response = from_failure(error).response(scope["path"])
        response.headers.update(self._guard_headers() | {"x-interlock-action": self._action_so_far()})
        await response(scope, receive, send)

    def _action(self) -> Body:
        """What replaces a request would reach the model as if the user had said it, so a request is blocked instead."""
        texts = list(self._body.texts or ())
        for index, result in zip(self._judged, self._results, strict=True):
            replaces = _reason(result) is StopReason.REPLACED
            if _reason(result) is StopReason.BLOCKED or (
                replaces and (index is None or self._body.input_type == "request")
            ):
                return {"action": "BLOCKED", "blocked_reason": result.said.text if result.said else _BLOCKED}
            if replaces and index is not None and result.said is not None:
                texts[index] = result.said.text
        if texts != list(self._body.texts or ()):
            return {"action": "GUARDRAIL_INTERVENED", "texts": texts}
        return {"action": "NONE"}


def _reason(result: Result) -> StopReason | None:
    stop = result.closed.stop if result.closed else None
    return stop.reason if stop else None
