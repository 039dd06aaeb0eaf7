"""Tool calls in a reply: from the text that a model writes to calls that a client can make.

One form is read, that of Hermes and Qwen: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number of them,
with or without text before. What only looks like a call is text.
"""

import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass

OPEN = "<tool_call>"
CLOSE = "</tool_call>"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for. `arguments` is JSON."""

    id: str
    name: str
    arguments: str


Piece = str | ToolCall


def reads_calls_of(chat_template: str, special_tokens: Collection[str]) -> bool:
    """Whether a model with this chat template is told of tools, and calls them in the form that is read here.

    Tags that are special tokens never become text, so they could not be read.
    """
    shows_tools = "tools" in chat_template
    return (
        shows_tools
        and all(tag in chat_template for tag in (OPEN, CLOSE))
        and not {OPEN, CLOSE} & set(special_tokens)
    )


class ToolCallReader:
    """Splits one reply into text and calls, as it comes. Text that may be the beginning of a call waits."""

    def __init__(self, names: Collection[str]) -> None:
        """`names` are the tools on offer: what asks for another is text."""
        self._names = frozenset(names)
        self._waiting = ""
        self._is_inside = False
        self.num_calls = 0

    def feed(self, text: str) -> list[Piece]:
        """The next part of the reply; what of it has settled."""
        self._waiting += text
        pieces: list[Piece] = []
        while True:
            before, tag, after = self._waiting.partition(CLOSE if self._is_inside else OPEN)
            if not tag:
                break
            self._waiting = after
            if self._is_inside:
                pieces.append(self._call(before) or f"{OPEN}{before}{CLOSE}")
            else:
                pieces.append(self._trimmed(before))
            self._is_inside = not self._is_inside
        if not self._is_inside:
            settled = self._waiting[: len(self._waiting) - _overlap(self._waiting, OPEN)]
            settled = self._trimmed(settled)
            pieces.append(settled)
            self._waiting = self._waiting[len(settled) :]
        return [piece for piece in pieces if piece]

    def end(self) -> list[Piece]:
        """The reply is over: what still waited is a call whose end is missing, or text after all."""
        rest, self._waiting = self._waiting, ""
        if not self._is_inside:
            return [text] if (text := self._trimmed(rest)) else []
        self._is_inside = False
        return [self._call(rest) or f"{OPEN}{rest}"]

    def _call(self, text: str) -> ToolCall | None:
        try:
            found = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return None
        if not isinstance(found, dict):
            return None
        name, arguments = found.get("name"), found.get("arguments", {})
        if not isinstance(name, str) or name not in self._names or not isinstance(arguments, dict):
            return None
        self.num_calls += 1
        # in ASCII: an escaped half of a surrogate pair stays an escape, and so can be sent
        return ToolCall(f"call_{secrets.token_hex(12)}", name, json.dumps(arguments))

    def _trimmed(self, text: str) -> str:
        """Once there are calls, the space before the next one or the end is no text; it waits until something follows."""
        return text.rstrip() if self.num_calls else text


def _refuse(constant: str) -> None:
    """Python reads NaN and Infinity, which are no JSON."""
    raise ValueError(constant)


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of `text` are the beginning of `tag`."""
    return next(
        (size for size in range(min(len(text), len(tag) - 1), 0, -1) if tag.startswith(text[-size:])), 0
    )
