"""What is asked for a second opinion, and what comes back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from guard.types import Phase

Message = Mapping[str, str]
"""{"role": ..., "content": ...}"""


@dataclass(frozen=True, slots=True)
class Question:
    """What a rule asks about one match. `reply` is all that the model said so far, also what is still held."""

    decision_id: str
    choice: int
    policy: str  # name@version#digest
    rule: str
    phase: Phase
    token: int  # of the match, within its phase
    values: Mapping[str, float]  # the condition's numbers at that token, by their text
    messages: Sequence[Message] = field(repr=False)
    reply: str = field(repr=False)  # "" at the end of the prompt
    asked_at: datetime

    @property
    def num_chars(self) -> int:
        return sum(len(message["content"]) for message in self.messages) + len(self.reply)


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A POST of JSON."""

    url: str
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a target says it used."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Judgement:
    """An answer that was understood."""

    allow: bool
    reason: str = ""
    usage: Usage = field(default_factory=Usage)


class AskError(Exception):
    """No answer that can be understood. The message is a word or two of ours, never text of the target."""

    def __init__(self, reason: str, *, counts: bool = True) -> None:
        """`counts`: it says that the target is unwell. What a text may have provoked says nothing about others."""
        super().__init__(reason)
        self.reason = reason
        self.counts = counts
