"""Text to token ids, through the model's own tokenizer and chat template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from server.tool_calls import reads_calls_of

Message = dict[str, str]  # {"role": ..., "content": ...}
TemplateMessage = Mapping[str, Any]  # the same, and perhaps tool_calls or a tool_call_id


class PromptError(ValueError):
    """What the client sent can't be made into a prompt; the text is for the client."""


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    """What clients that make token ids themselves want to know. A token that there is none of is None."""

    kind: str  # its class
    num_ids: int  # ids are below
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    unk_token: str | None = None
    chat_template: str | None = None
    calls_tools: bool = False  # in a form that can be read


class Tokenizer(Protocol):
    """What the API needs of a tokenizer."""

    @property
    def info(self) -> TokenizerInfo: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text, special tokens included. Ids are below `info.num_ids`."""
        ...

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """How the vocabulary spells each token."""
        ...

    def chat(
        self,
        messages: Sequence[TemplateMessage],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """The prompt for the assistant's next turn. Raises PromptError where the template refuses the messages."""
        ...


class ModelTokenizer:
    """A Hugging Face tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def info(self) -> TokenizerInfo:
        own = self._tokenizer
        # several templates are a table of them, from which none is named here
        template = own.chat_template if isinstance(own.chat_template, str) else None
        return TokenizerInfo(
            kind=type(own).__name__,
            num_ids=len(own),
            bos_token=own.bos_token,
            eos_token=own.eos_token,
            pad_token=own.pad_token,
            unk_token=own.unk_token,
            chat_template=template,
            calls_tools=template is not None and reads_calls_of(template, own.all_special_tokens),
        )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids))
        return text

    def pieces(self, ids: Sequence[int]) -> list[str]:
        pieces: list[str] = self._tokenizer.convert_ids_to_tokens(list(ids))
        return pieces

    def chat(
        self,
        messages: Sequence[TemplateMessage],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
    ) -> list[int]:
        if self._tokenizer.chat_template is None:
            raise PromptError("this model has no chat template; use /v1/completions")
        try:
            ids: list[int] = self._tokenizer.apply_chat_template(
                list(messages),
                tools=[dict(tool) for tool in tools] or None,
                add_generation_prompt=add_generation_prompt,
                return_dict=False,
                # a client that writes the template's control tokens into a message must not open a turn with them
                sanitize_control_tokens=True,
            )
        except Exception as error:
            # jinja's own message may quote the conversation
            raise PromptError(
                "the model's chat template does not accept this sequence of messages"
            ) from error
        return ids


class ByteTokenizer:
    """One token per UTF-8 byte: for the scripted engine, which has no model."""

    info = TokenizerInfo(
        "ByteTokenizer",
        num_ids=256,
        chat_template="{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}",
    )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self.decode([token_id]) for token_id in ids]

    def chat(
        self,
        messages: Sequence[TemplateMessage],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
    ) -> list[int]:
        return self.encode("".join(f"{message['role']}: {message['content']}\n" for message in messages))


def end_of_first_user_message(
    tokenizer: Tokenizer,
    messages: Sequence[TemplateMessage],
    ids: Sequence[int],
    tools: Sequence[Mapping[str, Any]] = (),
) -> int | None:
    """Which of `ids`, the conversation's tokens, is the last of its first user message (what closes the turn included).

    Monitors of drift measure from there. None where there is no such message, or where the template does not write the
    start of a conversation as it writes that start alone.
    """
    first = next((index for index, message in enumerate(messages) if message.get("role") == "user"), None)
    if first is None:
        return None
    try:
        start = tokenizer.chat(messages[: first + 1], tools=tools, add_generation_prompt=False)
    except PromptError:
        return None
    return len(start) - 1 if start and list(ids[: len(start)]) == start else None
