"""Buckets in this process's memory: limits of one server. One bucket for each limit that is configured, so there are few."""

from collections.abc import Callable, Sequence

from server.limits.types import Draw, Level, Limit, Taken


class MemoryStore:
    """Implements `LimitStore`. Nothing here awaits, so each call is atomic on its event loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._levels: dict[str, tuple[float, float]] = {}  # by bucket: what it held, and when

    async def take(self, draws: Sequence[Draw]) -> Taken:
        before = tuple(Level(draw, self._held(draw.limit)) for draw in draws)
        if any(level.is_short for level in before):
            return Taken(allowed=False, levels=before)
        return Taken(allowed=True, levels=tuple(map(self._draw, draws)))

    async def settle(self, draws: Sequence[Draw]) -> None:
        for draw in draws:
            self._draw(draw)

    async def close(self) -> None:
        pass

    def _held(self, limit: Limit) -> float:
        held, then = self._levels.get(limit.bucket, (float(limit.capacity), self._clock()))
        return min(limit.capacity, held + (self._clock() - then) * limit.per_s)

    def _draw(self, draw: Draw) -> Level:
        held = min(draw.limit.capacity, self._held(draw.limit) - draw.cost)
        self._levels[draw.limit.bucket] = (held, self._clock())
        return Level(draw, held)
