"""The request of /v1/responses, as far as a server that keeps nothing and answers in text can serve it."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from server.api.fields import (
    WITHOUT_TOOLS,
    EndUser,
    Metadata,
    Refusable,
    StreamOptions,
    Text,
    differs_from,
    is_set,
    num_unknown,
    refuse_foreign,
    refuse_unserved,
)
from server.api.formats import TextFormat
from server.api.schema import MAX_MESSAGES, ChatRequest, Finite, Moderation, PositiveInt, RefusalPart

_LOOSE = ConfigDict(extra="ignore", frozen=True)  # what a response's output holds beside its text, sent back


def _reasons(value: Any) -> bool:
    return not isinstance(value, dict) or any(item not in (None, "none") for item in value.values())


_REFUSED: Refusable = {
    **WITHOUT_TOOLS,
    **dict.fromkeys(
        (
            "previous_response_id",
            "conversation",
            "background",
            "background_options",
            "prompt",
            "max_tool_calls",
            "context_management",
            "image",
        ),
        is_set,
    ),
    "truncation": differs_from("disabled"),
    "reasoning": _reasons,
}


class _TextPart(BaseModel):
    model_config = _LOOSE

    type: Literal["input_text", "output_text"]
    text: Text


_Part = Annotated[_TextPart | RefusalPart, Field(discriminator="type")]


class InputMessage(BaseModel):
    model_config = _LOOSE

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[_Part], Field(max_length=MAX_MESSAGES, fail_fast=True)]

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class _TextSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponsesRequest(BaseModel):
    """POST /v1/responses."""

    model_config = ConfigDict(extra="allow", frozen=True)

    path: ClassVar[str] = "/v1/responses"

    model: str
    input: Text | Annotated[list[InputMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    instructions: Text | None = None
    max_output_tokens: PositiveInt | None = None
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    text: _TextSettings | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: Metadata | None = None
    user: Annotated[Text, Field(max_length=512)] | None = None
    safety_identifier: EndUser | None = None
    moderation: Moderation | None = None

    @model_validator(mode="after")
    def _refuse_what_is_not_served(self) -> Self:
        refuse_unserved(self.model_extra, _REFUSED)
        refuse_foreign(self.model_extra, self._foreign(), self.path)
        if self.top_logprobs and not self.shows_logprobs:
            raise ValueError("top_logprobs needs include: ['message.output_text.logprobs']")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed with stream: true")
        return self

    @property
    def shows_logprobs(self) -> bool:
        return bool(self.include)

    @property
    def num_unknown_fields(self) -> int:
        return num_unknown(self.model_extra, _REFUSED, self._foreign())

    def as_chat(self) -> ChatRequest:
        """The same request of a chat completion: what is admitted and run."""
        return ChatRequest(
            model=self.model,
            messages=list(self._messages()),
            max_completion_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            logprobs=self.shows_logprobs,
            top_logprobs=self.top_logprobs,
            stream=self.stream,
            metadata=self.metadata,
            user=self.user,
            safety_identifier=self.safety_identifier,
            moderation=self.moderation,
            response_format=self._response_format(),
        )

    def _response_format(self) -> Any:
        """The same as `response_format`, where the schema is a level deeper."""
        if self.text is None or self.text.format is None:
            return None
        given = self.text.format.model_dump(by_alias=True)
        kind = given.pop("type")
        return {"type": kind, "json_schema": given} if given else {"type": kind}

    def _messages(self) -> Iterator[Any]:
        if self.instructions is not None:
            yield {"role": "system", "content": self.instructions}
        if isinstance(self.input, str):
            yield {"role": "user", "content": self.input}
            return
        for message in self.input:
            yield {"role": message.role, "content": message.text}

    @classmethod
    def _foreign(cls) -> frozenset[str]:
        """Fields of chat completions that this endpoint doesn't have."""
        return frozenset(ChatRequest.model_fields).difference(cls.model_fields, _REFUSED)
