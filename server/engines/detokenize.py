"""From token ids to settled text: whole UTF-8 characters that can't turn out to be part of a stop string."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any

from tokenizers.decoders import DecodeStream

from server.engines.base import Token

Decode = Callable[[int], str | None]


class SettledText:
    """Turns the tokens of one response into `Token`s whose text may be shown.

    A token waits while its text is an incomplete character or may be the beginning of a stop string. When a stop
    string completes, the text is cut before it and `stopped` turns true.
    """

    def __init__(self, decode: Decode, stop: Iterable[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._waiting: deque[Token] = deque()
        self._unfinished = False
        self.stopped = False

    def push(self, token: Token) -> list[Token]:
        """Take the next generated token; return the tokens that settled, in order."""
        text = self._decode(token.token_id)
        # None: bytes of an unfinished character; the token waits for the one that completes it
        self._unfinished = text is None
        self._waiting.append(replace(token, text=text or ""))
        if text is None:
            return []
        if self._stop:
            pending = "".join(waiting.text for waiting in self._waiting)
            end = min((at for stop in self._stop if (at := pending.find(stop)) >= 0), default=-1)
            if end >= 0:
                self.stopped = True
                return self._settle(end)
            return self._settle(len(pending) - self._longest_stop_prefix(pending))
        return self._settle(None)

    def flush(self) -> list[Token]:
        """The response ended otherwise: whatever still waits is text after all, unfinished characters as such."""
        if self._waiting and self._unfinished:
            self._waiting[-1] = replace(self._waiting[-1], text=_UNFINISHED)
        return self._settle(None)

    def _longest_stop_prefix(self, text: str) -> int:
        return max(
            (
                size
                for stop in self._stop
                for size in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:size])
            ),
            default=0,
        )

    def _settle(self, num_chars: int | None) -> list[Token]:
        """Release waiting tokens whose text lies within the first `num_chars` characters (None: all).

        After a stop string the token that straddles the cut is released with the text before it.
        """
        settled: list[Token] = []
        room = num_chars
        while self._waiting:
            token = self._waiting[0]
            if room is not None:
                if len(token.text) > room:
                    break
                if room == 0 and (self.stopped or not token.text):
                    break
                room -= len(token.text)
            settled.append(self._waiting.popleft())
        if self.stopped:
            if room and self._waiting:
                settled.append(replace(self._waiting[0], text=self._waiting[0].text[:room]))
            self._waiting.clear()
        return settled


_CONTEXT = (
    8  # prompt tokens that decide how the first one is spelled (whether a leading space is dropped, say)
)
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


def stream_decoder(tokenizer: Any, prompt_ids: list[int]) -> Decode:
    """An incremental decoder that goes on from a prompt.

    Bytes that are no UTF-8 become replacement characters: what a model says may be garbage, and is never an error.
    """
    backend = tokenizer.backend_tokenizer
    special = frozenset(tokenizer.all_special_ids)
    context = prompt_ids[-_CONTEXT:]
    if tokenizer.decode(context).endswith(_UNFINISHED):
        context = []  # the stream would give the prompt's unfinished end back as text of the reply
    stream = DecodeStream(ids=context, skip_special_tokens=True)

    def decode(token_id: int) -> str | None:
        nonlocal stream
        try:
            text: str | None = stream.step(backend, token_id)
        except Exception:  # noqa: BLE001  # the library's word for bytes that can't be continued: begin anew
            stream = DecodeStream(ids=[], skip_special_tokens=True)
            return str(tokenizer.decode([token_id], skip_special_tokens=True))
        return "" if text is None and token_id in special else text

    return decode


@cache
def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's map of printable stand-ins to bytes, which byte-level BPE vocabularies are written in."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


def token_bytes(piece: str, text: str) -> bytes:
    """The bytes of one vocabulary entry: byte-level stand-ins, `<0xNN>` fall-backs, or simply its text."""
    if "�" not in text:
        return text.encode()
    if piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:-1], 16)])
    alphabet = _byte_level_alphabet()
    if all(char in alphabet for char in piece):
        return bytes(alphabet[char] for char in piece)
    return text.encode()
