"""Shared buckets, and what holds while they can't be reached."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, TypeVar

import structlog

from server.limits.types import Draw, LimitStore, LimitsUnavailableError, Taken

_log = structlog.get_logger()
_PAUSE_S = 1.0  # after a failure, in which nobody waits for the next

OnError = Literal["closed", "open"]
Result = TypeVar("Result")


class SharedStore:
    """Implements `LimitStore`. `closed`: without the shared buckets nothing is admitted. `open`: this server's own count, instead."""

    def __init__(
        self,
        shared: LimitStore,
        local: LimitStore,
        *,
        on_error: OnError,
        clock: Callable[[], float],
    ) -> None:
        self._shared = shared
        self._local = local
        self._on_error = on_error
        self._clock = clock
        self.on_failed: Callable[[OnError], None] = lambda _: None
        """Told of every call that did without the shared buckets."""
        self._paused_until = float("-inf")

    async def take(self, draws: Sequence[Draw]) -> Taken:
        return await self._try(lambda store: store.take(draws))

    async def settle(self, draws: Sequence[Draw]) -> None:
        await self._try(lambda store: store.settle(draws))

    async def close(self) -> None:
        await self._shared.close()

    async def _try(self, call: Callable[[LimitStore], Awaitable[Result]]) -> Result:
        if self._clock() >= self._paused_until:
            try:
                return await call(self._shared)
            except LimitsUnavailableError as error:
                self._paused_until = self._clock() + _PAUSE_S
                _log.warning("shared limits can't be reached", reason=str(error), on_error=self._on_error)
        self.on_failed(self._on_error)
        if self._on_error == "closed":
            raise LimitsUnavailableError("the shared limits can't be reached")
        return await call(self._local)
