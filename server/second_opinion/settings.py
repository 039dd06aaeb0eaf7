"""What every target of second opinions is configured with. A kind is a subclass with its own settings and two methods."""

import re
from abc import ABC, abstractmethod
from typing import Annotated, ClassVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr

from guard.durations import checked, seconds
from guard.strict import Strict
from server.second_opinion.types import AskError, HttpRequest, Judgement, Question

_REASON = re.compile(r"[a-z][a-z0-9_/-]{0,63}")


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("write a whole address, for example https://judge.example/v1")
    if parts.username or parts.password:
        raise ValueError("an address holds no user or password: name an environment variable for the key")
    return text.rstrip("/")


Url = Annotated[str, AfterValidator(_url)]
Duration = Annotated[str, AfterValidator(checked)]
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Price = Annotated[float, Field(ge=0)]


class BreakerSettings(Strict):
    failures: Annotated[int, Field(ge=1)] = 5  # in a row, then the target is left alone
    recovery: Duration = "10s"  # until one request tries again

    @property
    def recovery_s(self) -> float:
        return seconds(self.recovery)


class TargetSettings(Strict, ABC):
    """The key itself is never in the file: it names an environment variable."""

    URL_PATH: ClassVar[str] = ""  # below `url`

    url: Url
    timeout: Duration = "10s"  # of an answer; a rule's deadline may be earlier
    max_concurrency: Annotated[int, Field(ge=1, le=1024)] = 16
    max_chars: Annotated[int, Field(ge=1)] = 100_000
    """Of conversation and reply together. What is longer is not asked about: a part could be made to look harmless."""
    breaker: BreakerSettings = BreakerSettings()
    cost_per_request: Price = 0.0
    cost_per_1k_prompt_tokens: Price = 0.0
    cost_per_1k_completion_tokens: Price = 0.0

    @property
    def timeout_s(self) -> float:
        return seconds(self.timeout)

    @property
    def endpoint(self) -> str:
        return self.url + self.URL_PATH

    @property
    @abstractmethod
    def key_env(self) -> str | None:
        """The environment variable that holds this target's key."""

    def check_secret(self, secret: str) -> None:
        """Raises ValueError for a key that cannot be used; the message does not quote it."""
        if not secret.isascii() or not secret.isprintable():
            raise ValueError("holds characters that no key has")

    @abstractmethod
    def request(self, question: Question, secret: SecretStr | None) -> HttpRequest:
        """What is sent."""

    @abstractmethod
    def read(self, body: bytes, question: Question) -> Judgement:
        """Raises AskError for whatever is not exactly an answer."""


class ApiSettings(TargetSettings):
    """Targets with a bearer token, or none."""

    api_key_env: EnvName | None = None

    @property
    def key_env(self) -> str | None:
        return self.api_key_env


def bearer(secret: SecretStr | None) -> dict[str, str]:
    return {} if secret is None else {"authorization": f"Bearer {secret.get_secret_value()}"}


def not_understood() -> AskError:
    """The target answered, but not what was asked for: perhaps because of the text, so the breaker is not told."""
    return AskError("not_understood", counts=False)


def known_word(word: str) -> str:
    """A target's reason, if it looks like a word of a fixed list; it goes into the decision log, where no text belongs."""
    return word if _REASON.fullmatch(word) else ""
