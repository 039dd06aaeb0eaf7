"""Tool calls in a reply: from the text that a model writes to calls that a client can make.

One form is read, that of Hermes and Qwen: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number of them,
with or without text before. What only looks like a call is text.
"""

import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass

_OPEN = "<tool_call>"
_CLOSE = "</tool_call>"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for. `arguments` is JSON, as the model wrote its values."""

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
        and all(tag in chat_template for tag in (_OPEN, _CLOSE))
        and not {_OPEN, _CLOSE} & set(special_tokens)
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
            before, tag, after = self._waiting.partition(_CLOSE if self._is_inside else _OPEN)
            if not tag:
                break
            self._waiting = after
            if self._is_inside:
                pieces.append(self._call(before) or f"{_OPEN}{before}{_CLOSE}")
            else:
                pieces.append(before)
            self._is_inside = not self._is_inside
        if not self._is_inside:
            keep = _overlap(self._waiting, _OPEN)
            settled = len(self._waiting) - keep
            if self.num_calls and not self._waiting[:settled].strip():
                settled = 0  # the space between calls is no text; what follows it tells
            pieces.append(self._waiting[:settled])
            self._waiting = self._waiting[settled:]
        return self._told(pieces)

    def end(self) -> list[Piece]:
        """The reply is over: what still waited is a call whose end is missing, or text after all."""
        rest, self._waiting = self._waiting, ""
        if not self._is_inside:
            return self._told([rest])
        self._is_inside = False
        return self._told([self._call(rest) or f"{_OPEN}{rest}"])

    def _call(self, text: str) -> ToolCall | None:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(found, dict) or found.get("name") not in self._names:
            return None
        arguments = found.get("arguments", {})
        if not isinstance(arguments, dict):
            return None
        self.num_calls += 1
        return ToolCall(
            f"call_{secrets.token_hex(12)}", found["name"], json.dumps(arguments, ensure_ascii=False)
        )

    def _told(self, pieces: list[Piece]) -> list[Piece]:
        """Without empty text, and without the space around calls."""
        return [
            piece
            for piece in pieces
            if isinstance(piece, ToolCall) or (piece.strip() if self.num_calls else piece)
        ]


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of `text` are the beginning of `tag`."""
    return next(
        (size for size in range(min(len(text), len(tag) - 1), 0, -1) if tag.startswith(text[-size:])), 0
    )
