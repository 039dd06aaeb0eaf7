"""The part of the OpenAI request schema that is served. A field that would change the meaning is honoured or refused by name."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from server.engines.base import SamplingParams

MAX_CHOICES = 16  # of one request: n times the number of prompts
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_STRICT = ConfigDict(extra="forbid", frozen=True)

_Refusable = Callable[[Any], bool]


def _is_set(value: Any) -> bool:
    return bool(value)


def _is_unsupported_format(value: Any) -> bool:
    return not (isinstance(value, dict) and value.get("type") == "text")


# fields that are known, change what is answered, and are not served: refused unless they ask for nothing
_REFUSED: Mapping[str, _Refusable] = {
    "tools": _is_set,
    "functions": _is_set,
    "response_format": _is_unsupported_format,
    "audio": _is_set,
    "modalities": lambda value: value != ["text"],
    "prediction": _is_set,
    "web_search_options": _is_set,
    "guided_json": _is_set,
    "guided_regex": _is_set,
    "guided_choice": _is_set,
    "guided_grammar": _is_set,
    "structured_outputs": _is_set,
    "continue_final_message": _is_set,
    "prompt_embeds": _is_set,
    "use_beam_search": _is_set,
    "min_tokens": _is_set,
    "moderation": _is_set,
    "chat_template": _is_set,
    "chat_template_kwargs": _is_set,
    "documents": _is_set,
}

# fields that are known and don't change what this server answers
_ACCEPTED = frozenset(
    [
        "user",
        "safety_identifier",
        "store",
        "service_tier",
        "prompt_cache_key",
        "parallel_tool_calls",
        "tool_choice",
        "function_call",
        "reasoning_effort",
        "verbosity",
        "priority",
        "request_id",
        "cache_salt",
        "skip_special_tokens",
        "add_generation_prompt",
        "prompt_cache_retention",
    ]
)


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    include_usage: bool = False


class TextPart(BaseModel):
    model_config = _STRICT

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class GenerationRequest(BaseModel):
    """What chat and completions share."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model: str
    temperature: Annotated[_Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[_Finite, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[_Finite, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=256)]
        | list[Annotated[str, Field(min_length=1, max_length=256)]]
        | None
    ) = None
    stop_token_ids: Annotated[list[int], Field(max_length=64)] | None = None
    ignore_eos: bool = False
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    frequency_penalty: Annotated[_Finite, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[_Finite, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[_Finite, Field(gt=0, le=2)] | None = None
    logit_bias: dict[int, Annotated[_Finite, Field(ge=-100, le=100)]] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = (
        Field(default=None, max_length=16)
    )

    @model_validator(mode="after")
    def _refuse_what_is_not_served(self) -> Self:
        for name, asks_for_something in _REFUSED.items():
            value = (self.model_extra or {}).get(name)
            if value is not None and asks_for_something(value):
                raise ValueError(f"{name} is not supported by this server")
        if isinstance(self.stop, list) and len(self.stop) > 4:  # noqa: PLR2004  # OpenAI's limit
            raise ValueError("stop takes at most 4 strings")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed with stream: true")
        return self

    @property
    def num_unknown_fields(self) -> int:
        return len(set(self.model_extra or ()) - _ACCEPTED - set(_REFUSED))

    @property
    def end_user(self) -> str:
        """The client's name for its own user; "" if there is none."""
        extra = self.model_extra or {}
        name = extra.get("safety_identifier") or extra.get("user")
        return name if isinstance(name, str) else ""

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(
        self, *, max_tokens: int | None, logprobs: int | None, prompt_logprobs: int | None, choice: int
    ) -> SamplingParams:
        """Sampling of one choice. Choices of one seeded request get consecutive seeds, so that they differ and repeat."""

        def given(value: float | None, default: float) -> float:
            return default if value is None else value

        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=given(self.temperature, 1.0),
            top_p=given(self.top_p, 1.0),
            top_k=max(0, self.top_k or 0),
            min_p=given(self.min_p, 0.0),
            seed=None if self.seed is None else (self.seed + choice) % 2**63,
            stop=tuple(stop),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos,
            frequency_penalty=given(self.frequency_penalty, 0.0),
            presence_penalty=given(self.presence_penalty, 0.0),
            repetition_penalty=given(self.repetition_penalty, 1.0),
            logit_bias=dict(self.logit_bias or {}),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=0)] | None = 16  # OpenAI's default
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False
    best_of: int | None = None
    suffix: str | None = None

    @model_validator(mode="after")
    def _refuse_legacy(self) -> Self:
        if self.suffix:
            raise ValueError("suffix is not supported by this server")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of is not supported by this server")
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
