"""Text to token ids, through the model's own tokenizer and chat template."""

from collections.abc import Sequence
from typing import Any, Protocol

Message = dict[str, str]  # {"role": ..., "content": ...}


class PromptError(ValueError):
    """What the client sent can't be made into a prompt; the text is for the client."""


class Tokenizer(Protocol):
    """What the API needs of a tokenizer."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """The prompt for the assistant's next turn. Raises PromptError where the template refuses the messages."""
        ...


class ModelTokenizer:
    """A Hugging Face tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=True)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids))
        return text

    def chat(self, messages: Sequence[Message]) -> list[int]:
        if self._tokenizer.chat_template is None:
            raise PromptError("this model has no chat template; use /v1/completions")
        try:
            ids: list[int] = self._tokenizer.apply_chat_template(
                list(messages),
                add_generation_prompt=True,
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

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def chat(self, messages: Sequence[Message]) -> list[int]:
        return self.encode("".join(f"{message['role']}: {message['content']}\n" for message in messages))
