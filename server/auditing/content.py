"""What of the prompt and the reply a record holds: nothing, keyed hashes, a masked excerpt, or all of it.

The policy asks (`defaults.log.content`), the server's operator sets the limit. The level is settled when a request is
admitted, and no more text is kept in memory than it needs.
"""

import hmac
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from guard.policy import Policy
from guard.schema import LOG_CONTENTS, LogContent
from server.auditing.errors import AuditError

_MIN_KEY_BYTES = 16
_MARGIN = 256  # characters beyond an excerpt that are looked at, so that what it cuts through is masked too


@dataclass(frozen=True, slots=True)
class PromptText:
    """A prompt as the API received it."""

    whole: str  # completions: the text, or the token ids as JSON; chat: the messages as compact JSON
    latest: str  # what an excerpt shows: the last message, or the text

    @classmethod
    def chat(cls, messages: Sequence[Mapping[str, str]]) -> "PromptText":
        return cls(_compact(messages), messages[-1]["content"])

    @classmethod
    def completion(cls, prompt: str | Sequence[int]) -> "PromptText":
        text = prompt if isinstance(prompt, str) else _compact(prompt)
        return cls(text, text)


@dataclass(frozen=True, slots=True)
class ContentRules:
    """What the operator allows, and the key of the hashes."""

    most: LogContent = "none"
    key: bytes | None = None
    excerpt_chars: int = 200

    def level(self, policy: Policy) -> LogContent:
        """The less of what the policy asks for and what is allowed."""
        return min(policy.log.content, self.most, key=LOG_CONTENTS.index)

    def check(self, policy: Policy) -> None:
        """Raises AuditError if this policy needs a key that is not there."""
        if self.level(policy) == "hash" and self.key is None:
            raise AuditError(
                f"policy {policy} logs content as 'hash', which needs a key: put at least {_MIN_KEY_BYTES} random "
                "bytes in a file (openssl rand -hex 32 > audit.key) and name it in INTERLOCK__AUDIT_HMAC_KEY_FILE, "
                "or start with --log-content-max none"
            )

    def capture(self, policy: Policy, prompt: Callable[[], PromptText]) -> "Capture | None":
        """What begins to record one choice's texts; None where nothing is recorded, and `prompt` is not asked for."""
        level = self.level(policy)
        return None if level == "none" else Capture(self, level, prompt())

    def subject(self, end_user: str) -> str:
        """The client's name for its end user, as a keyed hash; "" without a key or a name."""
        return keyed_hash(self.key, end_user) if self.key and end_user else ""


class Capture:
    """The texts of one choice, reduced as they come."""

    def __init__(self, rules: ContentRules, level: LogContent, prompt: PromptText) -> None:
        self._rules = rules
        self._level = level
        self._prompt_hash = keyed_hash(rules.key, prompt.whole) if rules.key else None
        self._reply_hash = hmac.new(rules.key, digestmod="sha256") if rules.key else None
        self._reply: list[str] = []
        self._num_chars = 0
        self._prompt = ""
        self._num_kept = 0  # characters of the reply that the level needs
        if level == "full":
            self._prompt, self._num_kept = prompt.whole, sys.maxsize
        elif level == "excerpt":
            self._prompt = excerpt(prompt.latest, rules.excerpt_chars)
            self._num_kept = rules.excerpt_chars + _MARGIN + 1  # one more than is looked at: it was cut

    def add_reply(self, text: str) -> None:
        """The next part of what the model said, whether it may leave or not."""
        if self._num_chars < self._num_kept:
            self._reply.append(text)
        self._num_chars += len(text)
        if self._reply_hash is not None:
            self._reply_hash.update(_bytes(text))

    def record(self) -> dict[str, str]:
        """The `content` of the decision record."""
        told: dict[str, str] = {"mode": self._level}
        if self._rules.key and self._prompt_hash and self._reply_hash:
            told |= {"key": key_id(self._rules.key), "prompt_hmac": self._prompt_hash}
            if self._num_chars:
                told["reply_hmac"] = f"hmac-sha256:{self._reply_hash.hexdigest()}"
        match self._level:
            case "full":
                told |= {"prompt": self._prompt, "reply": "".join(self._reply)}
            case "excerpt":
                reply = excerpt("".join(self._reply), self._rules.excerpt_chars)
                told |= {"prompt_excerpt": self._prompt, "reply_excerpt": reply}
            case _:
                pass
        return told


# --- keyed hashes


def read_key(secret: str | None, file: Path | None) -> bytes | None:
    """The key of the hashes, from a setting or a file. Raises AuditError; the message never quotes the key."""
    if file is not None:
        try:
            key = file.read_bytes().strip()
        except OSError as error:
            raise AuditError(f"audit_hmac_key_file {file}: {error.strerror}") from error
    elif secret is not None:
        key = secret.strip().encode()
    else:
        return None
    if len(key) < _MIN_KEY_BYTES:
        raise AuditError(
            f"the audit HMAC key has {len(key)} bytes; at least {_MIN_KEY_BYTES} are needed: openssl rand -hex 32"
        )
    return key


def keyed_hash(key: bytes, text: str) -> str:
    return f"hmac-sha256:{hmac.new(key, _bytes(text), 'sha256').hexdigest()}"


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")  # JSON can spell half a pair


def key_id(key: bytes) -> str:
    """Says which key made a hash, so that keys can be rotated; it does not give the key away."""
    return f"k_{hmac.new(key, b'interlock key id', 'sha256').hexdigest()[:8]}"


# --- excerpts

_MASKS = (
    (re.compile(r"(?<!\S)\S*@\S*"), "[email]"),  # anchored at a word's start, or it would be quadratic
    (re.compile(r"[A-Za-z0-9_\-+/=.~%:]{20,}"), "[token]"),  # keys, hashes, addresses of the web
    (re.compile(r"\d"), "#"),
)
_CUT_WORD = re.compile(r"[!-~]+$")


def excerpt(text: str, num_chars: int) -> str:
    """The first characters, with e-mail addresses, long tokens and digits masked.

    What a cut runs through would escape its mask, so more is masked than is shown, and a word that is cut is left out.
    """
    raw = text[: num_chars + _MARGIN]
    if len(raw) < len(text):
        raw = _CUT_WORD.sub("", raw)
    for pattern, mask in _MASKS:
        raw = pattern.sub(mask, raw)
    return raw[:num_chars]


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
