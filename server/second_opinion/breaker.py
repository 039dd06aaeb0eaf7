"""A circuit breaker: a target that keeps failing is left alone for a while, then tried with one request.

    closed --failures in a row--> open --recovery--> half open --success--> closed
                                   ^------------------- failure --'

Own, because the maintained ones read the clock themselves and count every exception (Nygard, Release It!, chapter 5).
"""

from collections.abc import Callable
from enum import IntEnum


class BreakerState(IntEnum):
    CLOSED = 0
    HALF_OPEN = 1  # one request is trying
    OPEN = 2


class Breaker:
    """One target's. Every `admit` that says True is followed by one of `succeeded`, `failed` and `abandoned`."""

    def __init__(self, clock: Callable[[], float], *, failures: int, recovery_s: float) -> None:
        self._clock = clock
        self._limit = failures
        self._recovery_s = recovery_s
        self._in_a_row = 0
        self._opened_at = 0.0
        self.state = BreakerState.CLOSED

    @property
    def refuses(self) -> bool:
        """Whether `admit` would say no now."""
        if self.state is BreakerState.OPEN:
            return self._clock() < self._opened_at + self._recovery_s
        return self.state is BreakerState.HALF_OPEN

    def admit(self) -> bool:
        """Whether the target may be asked now."""
        if self.refuses:
            return False
        if self.state is BreakerState.OPEN:
            self.state = BreakerState.HALF_OPEN
        return True

    def succeeded(self) -> None:
        self._in_a_row = 0
        self.state = BreakerState.CLOSED

    def failed(self) -> None:
        self._in_a_row += 1
        if self.state is BreakerState.HALF_OPEN or self._in_a_row >= self._limit:
            self.state = BreakerState.OPEN
            self._opened_at = self._clock()

    def abandoned(self) -> None:
        """The request ended without saying anything about the target; if it was the one that tried, another may."""
        if self.state is BreakerState.HALF_OPEN:
            self.state = BreakerState.OPEN
            self._opened_at = self._clock() - self._recovery_s
