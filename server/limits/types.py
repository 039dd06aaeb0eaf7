"""Limits: what a key or a tenant may use, as buckets that fill up again.

A bucket holds `capacity` at most and gains `capacity / period_s` a second. What was promised is taken from it before a
request runs, and the difference to what was used after: so it may owe something for a while, and then nothing is admitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Unit(StrEnum):
    """What is counted."""

    REQUESTS = "requests"
    TOKENS = "tokens"  # of prompt and response
    BLOCKS = "blocks"  # requests that the policy blocked: strikes


@dataclass(frozen=True, slots=True)
class Limit:
    """One bucket of one owner."""

    bucket: str  # its name: the same on every replica
    unit: Unit
    capacity: int
    period_s: float  # in which an empty bucket fills

    @property
    def per_s(self) -> float:
        return self.capacity / self.period_s


@dataclass(frozen=True, slots=True)
class Draw:
    """What is asked of a bucket: it must hold `needed`, and `cost` is taken out (put back, if negative)."""

    limit: Limit
    cost: float
    needed: float

    @classmethod
    def taking(cls, limit: Limit, cost: float) -> "Draw":
        return cls(limit, cost, cost)


@dataclass(frozen=True, slots=True)
class Level:
    """What a bucket holds, after all draws or, if one failed, without any."""

    draw: Draw
    held: float

    @property
    def is_short(self) -> bool:
        return self.held < self.draw.needed

    @property
    def wait_s(self) -> float:
        """Until it holds what is needed, if nobody else draws."""
        return max(0.0, self.draw.needed - self.held) / self.draw.limit.per_s

    @property
    def reset_s(self) -> float:
        """Until it is full."""
        return max(0.0, self.draw.limit.capacity - self.held) / self.draw.limit.per_s


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of draws, in their order: all of them or none."""

    allowed: bool
    levels: tuple[Level, ...]


class LimitStore(Protocol):
    """Where the buckets are. A bucket that was never drawn from is full."""

    async def take(self, draws: Sequence[Draw]) -> Taken:
        """All draws, or, if one bucket holds too little, none. Raises LimitsUnavailableError."""
        ...

    async def settle(self, draws: Sequence[Draw]) -> None:
        """All draws, whatever the buckets hold. Raises LimitsUnavailableError."""
        ...

    async def close(self) -> None: ...


class LimitsUnavailableError(Exception):
    """The buckets can't be reached."""
