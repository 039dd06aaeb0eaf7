"""A circuit breaker: what keeps failing is left alone for a while, then tried with one request.

    closed --too many failures--> open --recovery--> half open --success--> closed
                                   ^------------------- failure --'

Own, because the maintained ones read the clock themselves and count every exception (Nygard, Release It!, chapter 5).
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Protocol


class BreakerState(IntEnum):
    CLOSED = 0
    HALF_OPEN = 1  # one request is trying
    OPEN = 2


class Tally(Protocol):
    """When there were too many failures."""

    def add(self, *, failed: bool, now: float) -> bool:
        """Count one that ended; whether there are too many failures now."""
        ...

    def clear(self) -> None: ...


class InARow:
    """So many failures without a success between."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0

    def add(self, *, failed: bool, now: float) -> bool:
        self._count = self._count + 1 if failed else 0
        return self._count >= self._limit

    def clear(self) -> None:
        self._count = 0


class InWindow:
    """So many failures in the last `window_s`, and no fewer than successes.

    Both, so that a few requests that are made to fail can't open the breaker for everybody. The window moves in halves.
    """

    def __init__(self, limit: int, window_s: float) -> None:
        self._limit = limit
        self._half_s = window_s / 2
        self._half = 0
        self._now, self._before = [0, 0], [0, 0]  # successes and failures

    def add(self, *, failed: bool, now: float) -> bool:
        half = int(now / self._half_s)
        if half != self._half:
            self._before = self._now if half == self._half + 1 else [0, 0]
            self._half, self._now = half, [0, 0]
        self._now[failed] += 1
        successes, failures = (sum(counts) for counts in zip(self._now, self._before, strict=True))
        return failures >= max(self._limit, successes)

    def clear(self) -> None:
        self._now, self._before = [0, 0], [0, 0]


class Breaker:
    """Every `admit` that says True is followed by `succeeded`, `failed` or `abandoned`.

    What was admitted before the breaker opened says nothing any more. A request that tries and is silent for the
    recovery time has been lost, and another may try.
    """

    def __init__(self, clock: Callable[[], float], tally: Tally, *, recovery_s: float) -> None:
        self._clock = clock
        self._tally = tally
        self._recovery_s = recovery_s
        self._since = 0.0  # in the present state
        self.state = BreakerState.CLOSED

    @property
    def refuses(self) -> bool:
        """Whether `admit` would say no now."""
        return self.state is not BreakerState.CLOSED and self._clock() < self._since + self._recovery_s

    def admit(self) -> bool:
        """Whether one may be let through now."""
        if self.refuses:
            return False
        if self.state is not BreakerState.CLOSED:
            self._enter(BreakerState.HALF_OPEN)
        return True

    def succeeded(self) -> None:
        self._tally.add(failed=False, now=self._clock())
        if self.state is BreakerState.HALF_OPEN:
            self._tally.clear()
            self._enter(BreakerState.CLOSED)

    def failed(self) -> None:
        too_many = self._tally.add(failed=True, now=self._clock())
        if self.state is BreakerState.HALF_OPEN or (too_many and self.state is BreakerState.CLOSED):
            self._enter(BreakerState.OPEN)

    def abandoned(self) -> None:
        """It ended without saying anything; if it was the one that tried, another may."""
        if self.state is BreakerState.HALF_OPEN:
            self._enter(BreakerState.OPEN)
            self._since -= self._recovery_s

    def _enter(self, state: BreakerState) -> None:
        self.state, self._since = state, self._clock()
