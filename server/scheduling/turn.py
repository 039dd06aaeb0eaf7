"""One request's way through the line: it enters once at most, and leaves however it ends."""

from collections.abc import Awaitable, Callable

from server.scheduling.line import Line
from server.scheduling.types import Standing


class Turn:
    """Of one request."""

    def __init__(
        self,
        line: Line,
        who: Standing,
        is_gone: Callable[[], Awaitable[bool]],
        clock: Callable[[], float],
    ) -> None:
        self._line = line
        self._who = who
        self._is_gone = is_gone
        self._clock = clock
        self._size = 0
        self._since: float | None = None  # it has a place

    def check(self) -> None:
        """Before anything is done for it. Raises TurnedAwayError."""
        self._line.check(self._who)

    async def enter(self, size: int) -> float:
        """Wait for a place for so many responses; the seconds it took. Raises TurnedAwayError and ClientGoneError."""
        assert self._since is None, "a request enters once"  # noqa: S101
        began = self._clock()
        await self._line.enter(self._who, size, self._is_gone)
        self._size, self._since = size, self._clock()
        return self._since - began

    def leave(self) -> None:
        if self._since is not None:
            self._line.leave(self._who, self._size, self._clock() - self._since)
            self._since = None
