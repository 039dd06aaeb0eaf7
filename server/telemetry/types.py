"""What traces are told of each choice, and where that goes: nowhere, unless `telemetry: otlp` is set."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from starlette.types import ASGIApp

from guard.types import Phase

_OPERATIONS = {"completions": "text_completion", "moderations": "moderation"}  # all others: chat


@dataclass(frozen=True, slots=True)
class Told:
    """One choice that has ended. No text of the prompt or the reply."""

    endpoint: str
    model: str
    decision_id: str
    choice: int
    began: datetime
    ended: datetime
    first_token_s: float | None  # from `began`
    num_prompt: int
    num_response: int
    num_delivered: int
    finish: str | None  # None: it was cut off
    outcome: str
    action: str
    phase: Phase | None
    policy: str
    rules: tuple[str, ...]  # that matched, enforced
    shadow: tuple[str, ...]
    maxima: Mapping[tuple[Phase, str], float]  # the highest score of each monitor
    error: str | None  # the type of what went wrong

    @property
    def operation(self) -> str:
        """As the semantic conventions for generative AI name it."""
        return _OPERATIONS.get(self.endpoint, "chat")


class Telemetry(Protocol):
    def choice(self, tell: Callable[[], Told]) -> None:
        """A choice has ended; `tell` makes what is told of it. Called in the context of its request; never blocks, never raises."""
        ...

    def exemplar(self) -> dict[str, str] | None:
        """What a metric may carry of the current trace: its id, if it is recorded."""
        ...

    def wrapped(self, app: ASGIApp) -> ASGIApp:
        """The application with a span around each request."""
        ...

    def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        ...


class NoTelemetry:
    """Implements `Telemetry`."""

    def choice(self, tell: Callable[[], Told]) -> None:
        pass

    def exemplar(self) -> dict[str, str] | None:
        return None

    def wrapped(self, app: ASGIApp) -> ASGIApp:
        return app

    def close(self) -> None:
        pass
