"""What the OpenAPI document says of answers. Nothing is built from these models: they are what a test holds the answers against.

Each says what a client may rely on; objects have more fields than are named here.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

_Object = dict[str, Any]
Responses = dict[int | str, dict[str, Any]]


class _Described(BaseModel):
    model_config = ConfigDict(extra="allow")


# --- errors ------------------------------------------------------------------------------------------------------------


class ErrorDetail(_Described):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(_Described):
    """OpenAI's shape of an error."""

    error: ErrorDetail


class AnthropicError(Error):
    """Anthropic's shape, with OpenAI's `code` and `param` beside."""

    type: Literal["error"]


def _errors(model: type[Error]) -> Responses:
    return {
        "4XX": {"model": model, "description": "The request is refused; `error.code` says why."},
        "5XX": {"model": model, "description": "The server can't answer; `error.code` says why."},
    }


ERRORS = _errors(Error)
ANTHROPIC_ERRORS = _errors(AnthropicError)


# --- replies -----------------------------------------------------------------------------------------------------------


class Interlock(_Described):
    """What the guard did, and by which policy."""

    decision_id: str
    action: str
    phase: str | None
    policy: str


class _Guarded(_Described):
    interlock: Interlock


class ChatChoice(_Described):
    index: int
    message: _Object
    logprobs: _Object | None
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"]


class TextChoice(_Described):
    index: int
    text: str
    logprobs: _Object | None
    finish_reason: Literal["stop", "length", "content_filter"]


class TokenUsage(_Described):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _Completion(_Guarded):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: TokenUsage


class ChatCompletion(_Completion):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextCompletion(_Completion):
    object: Literal["text_completion"]
    choices: list[TextChoice]


class ResponseObject(_Guarded):
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    model: str
    output: list[_Object]
    usage: _Object


class Message(_Guarded):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[_Object]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "refusal"]
    usage: _Object


class ModerationResult(_Described):
    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]


class Moderations(_Guarded):
    id: str
    model: str
    results: list[ModerationResult]


class GuardrailAnswer(_Described):
    action: Literal["NONE", "BLOCKED", "GUARDRAIL_INTERVENED"]
    blocked_reason: str | None = None
    texts: list[str] | None = None


_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}


def whole(model: type[BaseModel]) -> Responses:
    """An answer in JSON."""
    return {200: {"model": model, "description": "The answer."}}


def whole_or_streamed(model: type[BaseModel]) -> Responses:
    """An answer in JSON, or as server-sent events where the request has `stream`."""
    return {
        200: {
            "model": model,
            "description": "The answer; with `stream` as server-sent events.",
            "content": {"text/event-stream": {"schema": _EVENT}},
        }
    }


NO_BODY: Responses = {
    200: {"description": "It is well."},
    503: {"description": "It is not."},
}
"""Of health: the status says it all."""


class Probe(_Described):
    """Each check, and whether all of them pass."""

    ok: bool
    checks: list[_Object]


PROBE: Responses = {
    200: {"model": Probe, "description": "All is well."},
    503: {"model": Probe, "description": "Something is not."},
}

TEXT: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
