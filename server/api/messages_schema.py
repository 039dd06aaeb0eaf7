"""The request of Anthropic's /v1/messages, as far as a server that reads and answers in text can serve it."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from server.api.fields import (
    WITHOUT_TOOLS,
    Refusable,
    Text,
    differs_from,
    is_set,
    num_unknown,
    refuse_foreign,
    refuse_unserved,
)
from server.api.schema import MAX_MESSAGES, ChatMessage, ChatRequest, Finite, PositiveInt, StopString

_LOOSE = ConfigDict(extra="ignore", frozen=True)  # cache_control and citations change nothing of the text

_REFUSED: Refusable = {
    **{name: asks for name, asks in WITHOUT_TOOLS.items() if name not in {"tool_choice", "service_tier"}},
    **dict.fromkeys(
        ("tool_choice", "mcp_servers", "container", "context_management", "output_config", "output_format"),
        is_set,
    ),
    "prefill": is_set,
    "inference_geo": is_set,
    "speed": differs_from("standard"),
    "service_tier": differs_from("auto", "standard_only"),
}
_KNOWN = frozenset({"cache_control", "diagnostics", "user_profile_id", "workspace_id", "betas"})


class TextBlock(BaseModel):
    model_config = _LOOSE

    type: Literal["text"]
    text: Text


_Blocks = Annotated[list[TextBlock], Field(max_length=MAX_MESSAGES, fail_fast=True)]


def _text(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)


class _Message(BaseModel):
    model_config = _LOOSE

    role: Literal["user", "assistant", "system"]
    content: Text | _Blocks


class _Metadata(BaseModel):
    model_config = _LOOSE

    user_id: Annotated[Text, Field(max_length=512)] | None = None


class CountRequest(BaseModel):
    """POST /v1/messages/count_tokens: a conversation."""

    model_config = ConfigDict(extra="allow", frozen=True)

    path: ClassVar[str] = "/v1/messages"

    model: str
    messages: Annotated[list[_Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    system: Text | _Blocks | None = None

    @model_validator(mode="after")
    def _refuse_what_is_not_served(self) -> Self:
        refuse_unserved(self.model_extra, _REFUSED)
        refuse_foreign(self.model_extra, self._foreign(), self.path)
        if self.messages[-1].role == "assistant":
            raise ValueError("the last message must not be the assistant's: this server does not continue it")
        return self

    @property
    def num_unknown_fields(self) -> int:
        return num_unknown(self.model_extra, _REFUSED, _KNOWN, self._foreign())

    def conversation(self) -> Iterator[ChatMessage]:
        if self.system is not None:
            yield ChatMessage(role="system", content=_text(self.system))
        for message in self.messages:
            yield ChatMessage(role=message.role, content=_text(message.content))

    @classmethod
    def _foreign(cls) -> frozenset[str]:
        """Fields of chat completions that this endpoint doesn't have."""
        return frozenset(ChatRequest.model_fields).difference(MessagesRequest.model_fields, _REFUSED)


class MessagesRequest(CountRequest):
    """POST /v1/messages."""

    max_tokens: PositiveInt
    temperature: Annotated[Finite, Field(ge=0, le=1)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    stop_sequences: Annotated[list[StopString], Field(max_length=4)] | None = None
    stream: bool | None = None
    metadata: _Metadata | None = None

    def as_chat(self) -> ChatRequest:
        """The same request of a chat completion: what is admitted and run."""
        given: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "stop": self.stop_sequences,
            "user": self.metadata.user_id if self.metadata else None,
        }
        return ChatRequest(
            model=self.model,
            messages=list(self.conversation()),
            max_completion_tokens=self.max_tokens,
            stream=self.stream,
            **given,
        )
