"""A breaker per monitor: one that keeps failing is not listened to for a while, so that rules that fail closed refuse at once.

A monitor fails a response if some rule could not judge its score there: it raised, was late, missing or not finite.
When its time is up it is tried on made-up tokens, not on a client's: nobody pays for that, and nobody can choose its outcome.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from time import monotonic

import structlog

from server.breaker import Breaker, BreakerState, InWindow

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """It opens at so many failed responses within the window, if at least half of all in it failed."""

    failures: int = 10
    window_s: float = 60.0
    recovery_s: float = 30.0  # then it is tried


async def _always(_: str) -> bool:
    return True


class MonitorBreakers:
    """Of all monitors of a server, by name."""

    def __init__(
        self,
        settings: BreakerSettings | None = None,
        *,
        probe: Callable[[str], Awaitable[bool]] = _always,
        clock: Callable[[], float] = monotonic,
        on_change: Callable[[str, BreakerState], None] = lambda *_: None,
    ) -> None:
        """`probe` says whether a monitor works."""
        self._settings = settings or BreakerSettings()
        self._probe = probe
        self._probing: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references
        self._clock = clock
        self._on_change = on_change
        self._breakers: dict[str, Breaker] = {}

    def admit(self, monitors: Collection[str]) -> frozenset[str]:
        """Of the monitors that one request reads, those that it must do without. Called in the event loop."""
        return frozenset(name for name in monitors if not self._admit(name))

    def _admit(self, monitor: str) -> bool:
        breaker = self._breaker(monitor)
        if breaker.state is BreakerState.CLOSED:
            return True
        if breaker.admit():
            self._on_change(monitor, breaker.state)
            probing = asyncio.get_running_loop().create_task(self._try(monitor))
            self._probing.add(probing)
            probing.add_done_callback(self._probing.discard)
        return False

    async def _try(self, monitor: str) -> None:
        try:
            works = await self._probe(monitor)
        except Exception as error:  # noqa: BLE001  # whatever it was, the monitor was not seen to work
            _log.warning("a monitor could not be tried", monitor=monitor, error=type(error).__name__)
            works = False
        self._count(monitor, failed=not works)

    def told(self, monitor: str, *, failed: bool) -> None:
        """What a monitor came to in one response that listened to it. Such a one was admitted before the breaker opened, if it is not closed."""
        if self._breaker(monitor).state is BreakerState.CLOSED:
            self._count(monitor, failed=failed)

    def _count(self, monitor: str, *, failed: bool) -> None:
        breaker = self._breaker(monitor)
        before = breaker.state
        if failed:
            breaker.failed()
        else:
            breaker.succeeded()
        if breaker.state is before:
            return
        self._on_change(monitor, breaker.state)
        if breaker.state is BreakerState.OPEN:
            _log.error(
                "a monitor keeps failing and is left alone", monitor=monitor, for_s=self._settings.recovery_s
            )
        else:
            _log.info("a monitor works again", monitor=monitor)

    def _breaker(self, monitor: str) -> Breaker:
        if monitor not in self._breakers:
            s = self._settings
            tally = InWindow(s.failures, s.window_s)
            self._breakers[monitor] = Breaker(self._clock, tally, recovery_s=s.recovery_s)
        return self._breakers[monitor]
