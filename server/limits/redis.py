"""Buckets in Redis, for limits that several replicas share. Each call is one script, so it is atomic; the clock is Redis's."""

from collections.abc import Sequence

from pydantic import SecretStr
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, RedisError  # noqa: A004

from server.limits.types import Draw, Level, LimitsUnavailableError, Taken

_PREFIX = "interlock:limits:"

# KEYS: buckets. ARGV: 1 to draw whatever they hold; then capacity, gain per second, cost and need of each.
# A bucket that is full again is forgotten, for one that was never drawn from is full.
_SCRIPT = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local allowed, held = 1, {}
for i, bucket in ipairs(KEYS) do
    local capacity, per_s = tonumber(ARGV[4 * i - 2]), tonumber(ARGV[4 * i - 1])
    local stored = redis.call('HMGET', bucket, 'held', 'at')
    held[i] = capacity
    if stored[1] and stored[2] then
        local gained = math.max(0, now - tonumber(stored[2])) * per_s
        held[i] = math.min(capacity, tonumber(stored[1]) + gained)
    end
    if held[i] < tonumber(ARGV[4 * i + 1]) then allowed = 0 end
end
local told = {allowed}
for i, bucket in ipairs(KEYS) do
    local capacity, per_s, cost = tonumber(ARGV[4 * i - 2]), tonumber(ARGV[4 * i - 1]), tonumber(ARGV[4 * i])
    if cost ~= 0 and (allowed == 1 or ARGV[1] == '1') then
        held[i] = math.min(capacity, held[i] - cost)
        redis.call('HSET', bucket, 'held', string.format('%.17g', held[i]), 'at', string.format('%.17g', now))
        redis.call('PEXPIRE', bucket, math.ceil((capacity - held[i]) / per_s * 1000) + 1000)
    end
    told[i + 1] = string.format('%.17g', held[i])
end
return told
"""


class RedisStore:
    """Implements `LimitStore`."""

    def __init__(self, url: SecretStr, *, timeout_s: float) -> None:
        """Connects when it is first used. Raises ValueError for an address that is none; it is not quoted, for it may hold a password."""
        try:
            self._redis: Redis = Redis.from_url(
                url.get_secret_value(),
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 1, (ConnectionError,)),  # a connection of the pool may be stale
            )
        except ValueError:
            raise ValueError(
                "limits_redis: write an address as redis://[[user]:password@]host:6379/0 or rediss://…"
            ) from None
        self._script = self._redis.register_script(_SCRIPT)

    async def take(self, draws: Sequence[Draw]) -> Taken:
        allowed, *held = await self._run(draws, force=False)
        levels = tuple(Level(draw, float(level)) for draw, level in zip(draws, held, strict=True))
        return Taken(allowed=bool(int(allowed)), levels=levels)

    async def settle(self, draws: Sequence[Draw]) -> None:
        await self._run(draws, force=True)

    async def close(self) -> None:
        await self._redis.aclose()

    async def _run(self, draws: Sequence[Draw], *, force: bool) -> list[bytes]:
        args: list[float] = [int(force)]
        for draw in draws:
            args += [draw.limit.capacity, draw.limit.per_s, draw.cost, draw.needed]
        try:
            told: list[bytes] = await self._script([_PREFIX + draw.limit.bucket for draw in draws], args)
        except (RedisError, OSError, TimeoutError) as error:
            raise LimitsUnavailableError(type(error).__name__) from error
        return told
