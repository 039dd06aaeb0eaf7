"""The part of the OpenAI request schema that is served. A field that would change the meaning is honoured or refused by name."""

import hashlib
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator

from server.api.fields import (
    GENERATION,
    WITHOUT_TOOLS,
    EndUser,
    Metadata,
    Refusable,
    StreamOptions,
    Text,
    encodable,
    is_set,
    num_unknown,
    refuse_foreign,
    refuse_unserved,
    refused,
)
from server.api.formats import ResponseFormat
from server.api.tools_schema import CalledTool, WithTools
from server.engines.base import Grammar, SamplingParams
from server.grammars.source import Form

MAX_CHOICES = 16  # of one request: n times the number of prompts
MAX_MESSAGES = 4096
_INT32 = 2**31 - 1
Finite = Annotated[float, Field(allow_inf_nan=False)]
_STRICT = ConfigDict(extra="forbid", frozen=True)
PositiveInt = Annotated[int, Field(ge=1, le=_INT32)]
TokenId = Annotated[int, Field(ge=0, le=_INT32, strict=True)]
StopString = Annotated[Text, Field(min_length=1, max_length=256)]


class TextPart(BaseModel):
    model_config = _STRICT

    type: Literal["text"]
    text: Text


class RefusalPart(BaseModel):
    """What a reply that was withheld said instead, sent back as history."""

    model_config = _STRICT

    type: Literal["refusal"]
    refusal: Text

    @property
    def text(self) -> str:
        return self.refusal


# of messages: known and not served, refused unless empty
_OF_MESSAGES = dict.fromkeys(
    (
        "name",
        "tool_calls",
        "tool_call_id",
        "function_call",
        "audio",
        "reasoning",
        "reasoning_content",
        "prefix",
    ),
    is_set,
)
_Part = Annotated[TextPart | RefusalPart, Field(discriminator="type")]


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[_Part], Field(max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    refusal: Text | None = None
    tool_calls: Annotated[list[CalledTool], Field(max_length=128)] | None = None
    tool_call_id: Text | None = None

    @model_validator(mode="after")
    def _refuse_what_is_not_served(self) -> Self:
        refuse_unserved(self.model_extra, _OF_MESSAGES)
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls are the assistant's")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("a message of the role tool has a tool_call_id, and no other")
        return self

    @property
    def shown_role(self) -> str:
        """`developer` is OpenAI's newer name for `system`; chat templates know the old one."""
        return "system" if self.role == "developer" else self.role

    @property
    def shown(self) -> dict[str, Any]:
        """As the chat template takes it."""
        message: dict[str, Any] = {"role": self.shown_role, "content": self.content_text}
        if self.tool_calls:
            message["tool_calls"] = [call.shown for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message

    @property
    def uses_tools(self) -> bool:
        return bool(self.tool_calls) or self.role == "tool"

    @property
    def content_text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or self.refusal or ""

    @property
    def text(self) -> str:
        """All that it says, calls of tools included."""
        return "\n".join(filter(None, [self.content_text, *(call.text for call in self.tool_calls or ())]))


class GenerationRequest(BaseModel):
    """What chat and completions share."""

    model_config = ConfigDict(extra="allow", frozen=True)

    path: ClassVar[str]
    foreign: ClassVar[tuple[str, ...]]  # fields of other endpoints, which this one would have to ignore
    refused: ClassVar[Refusable] = WITHOUT_TOOLS

    model: str
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=64)] | None = None
    ignore_eos: bool = False
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    frequency_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[Finite, Field(ge=0.01, le=2)] | None = None
    logit_bias: (
        Annotated[dict[int, Annotated[Finite, Field(ge=-100, le=100)]], Field(max_length=1024)] | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: Metadata | None = None
    user: Annotated[Text, Field(max_length=512)] | None = None
    safety_identifier: EndUser | None = None
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")] | None = None  # vLLM's

    @model_validator(mode="after")
    def _refuse_what_is_not_served(self) -> Self:
        refuse_unserved(self.model_extra, self.refused)
        refuse_foreign(self.model_extra, self.foreign, self.path)
        if isinstance(self.stop, list) and len(self.stop) > 4:  # noqa: PLR2004  # OpenAI's limit
            raise ValueError("stop takes at most 4 strings")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed with stream: true")
        return self

    @property
    def num_unknown_fields(self) -> int:
        return num_unknown(self.model_extra, self.refused, self.foreign)

    @property
    def end_user(self) -> str:
        """The client's name for its own user; "" if there is none."""
        return self.safety_identifier or self.user or ""

    @property
    def obfuscates(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_obfuscation)

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(
        self,
        *,
        max_tokens: int | None,
        logprobs: int | None,
        prompt_logprobs: int | None,
        choice: int,
        grammar: Grammar | None = None,
    ) -> SamplingParams:
        """Sampling of one choice. Choices of one seeded request get seeds of their own, so that they differ and repeat."""

        def given(value: float | None, default: float) -> float:
            return default if value is None else value

        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=given(self.temperature, 1.0),
            top_p=given(self.top_p, 1.0),
            top_k=max(0, self.top_k or 0),
            min_p=given(self.min_p, 0.0),
            seed=None if self.seed is None else _choice_seed(self.seed, choice),
            stop=tuple(stop),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos,
            frequency_penalty=given(self.frequency_penalty, 0.0),
            presence_penalty=given(self.presence_penalty, 0.0),
            repetition_penalty=given(self.repetition_penalty, 1.0),
            logit_bias=dict(self.logit_bias or {}),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            grammar=grammar,
        )


class _ScoreOnly(BaseModel):
    model_config = _STRICT

    mode: Literal["score"]  # to block is the server's policy's to say, not the request's


class _ModerationPolicy(BaseModel):
    model_config = _STRICT

    input: _ScoreOnly | None = None
    output: _ScoreOnly | None = None


class Moderation(BaseModel):
    """Asks for the monitors' scores beside the reply."""

    model_config = _STRICT

    model: str
    policy: _ModerationPolicy | None = None


class ChatRequest(GenerationRequest, WithTools):
    """POST /v1/chat/completions."""

    path = "/v1/chat/completions"
    foreign = ("prompt", "echo", "suffix", "best_of")
    refused = GENERATION

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    moderation: Moderation | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.ignore_eos and self.form is not None:
            raise refused("ignore_eos", "a reply that must have a form ends where the form does")
        return self

    @property
    def form(self) -> Form | None:
        """What the reply must look like; None: nothing in particular."""
        answer = self.response_format.answer if self.response_format else None
        if answer is None and not self.constrains_calls:
            return None
        return Form(answer, self.callable, must_call=self.must_call, at_most_one=self.at_most_one_call)


def _prompt(value: Any) -> str | list[str] | list[int] | list[list[int]]:
    """One or more prompts, each a text or token ids. The first item says which; the first wrong one ends the check."""
    if isinstance(value, str):
        return encodable(value)
    if not isinstance(value, list) or not value:
        raise ValueError(
            "must be a text, a list of texts, a list of token ids or a list of such lists, and not empty"
        )
    if type(value[0]) is int:
        return _ids(value)
    if len(value) > MAX_CHOICES:
        raise ValueError(f"has {len(value)} prompts; at most {MAX_CHOICES} in one request")
    if isinstance(value[0], str):
        if not all(isinstance(item, str) for item in value):
            raise ValueError("mixes texts with something else")
        return [encodable(item) for item in value]
    return [_ids(item) for item in value]


def _ids(value: Any) -> list[int]:
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item <= _INT32 for item in value):
        raise ValueError("has something other than token ids where the first item is one")
    return value


def _choice_seed(seed: int, choice: int) -> int:
    """The first choice has the request's seed; the others' don't coincide with those of neighbouring seeds."""
    if choice == 0:
        return seed % 2**63
    digest = hashlib.sha256(f"{seed}:{choice}".encode()).digest()
    return int.from_bytes(digest[:8]) % 2**63


_Ids = Annotated[list[TokenId], Field(min_length=1)]
_Prompts = str | Annotated[list[str] | _Ids | list[_Ids], Field(min_length=1)]


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    path = "/v1/completions"
    foreign = ("messages", "max_completion_tokens", "top_logprobs", "moderation")

    prompt: Annotated[
        Text | list[str] | list[int] | list[list[int]],
        PlainValidator(_prompt, json_schema_input_type=_Prompts),
    ]
    max_tokens: Annotated[int, Field(ge=0, le=_INT32)] | None = 16  # OpenAI's default
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False
    add_special_tokens: bool | None = (
        None  # vLLM's: of texts, the tokenizer's own, such as one for the beginning
    )
    best_of: int | None = None
    suffix: str | None = None

    @model_validator(mode="after")
    def _refuse_legacy(self) -> Self:
        if self.suffix:
            raise refused("suffix")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise refused("best_of", "it may only equal n")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or more prompts, each a text or token ids."""
        match self.prompt:
            case str() as text:
                return [text]
            case [int(), *_] as ids:
                return [[int(i) for i in ids]]  # type: ignore[arg-type]  # pydantic made the list uniform
            case batch:
                return list(batch)  # type: ignore[arg-type]
