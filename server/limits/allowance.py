"""What one request may use of its key's and its tenant's limits: taken before it runs, settled when it is over."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor

from server.limits.types import Draw, Level, Limit, LimitStore, Taken, Unit

_SHOWN = (Unit.REQUESTS, Unit.TOKENS)  # in headers; how near a key is to its strikes is not told


@dataclass(frozen=True, slots=True)
class OverLimit:
    """Why a request is not admitted."""

    unit: Unit
    limit: int
    period_s: float
    asked: int
    wait_s: float | None  # None: it asks for more than the limit will ever hold


class OverLimitError(Exception):
    def __init__(self, why: OverLimit) -> None:
        super().__init__(why.unit)
        self.why = why


class Allowance:
    """Of one request. Without limits, anything."""

    def __init__(self, store: LimitStore | None = None, limits: Sequence[Limit] = ()) -> None:
        self._store = store
        self._limits = tuple(limits)
        self._levels: dict[Unit, Level] = {}  # the tightest, as last seen
        self._num_reserved = 0  # tokens that are taken
        self._num_prompt = 0
        self._num_response = 0
        self._has_begun = False
        self._is_blocked = False
        self._is_struck = False  # that was counted

    # --- before the request runs

    async def take_request(self) -> None:
        """Count a request. Raises OverLimitError, LimitsUnavailableError."""
        draws = [Draw.taking(limit, 1) for limit in self._of(Unit.REQUESTS)]
        draws += [Draw(limit, cost=0, needed=1) for limit in self._of(Unit.BLOCKS)]
        await self._take([*draws, *(Draw(limit, cost=0, needed=0) for limit in self._of(Unit.TOKENS))])

    async def take_tokens(self, num_prompt: int, num_response: int) -> None:
        """Reserve tokens: those of the prompts, and as many for responses as were asked for (0: not said).

        Raises OverLimitError, LimitsUnavailableError.
        """
        self._num_prompt = num_prompt
        draws = [Draw.taking(limit, num_prompt + num_response) for limit in self._of(Unit.TOKENS)]
        await self._take(draws)
        self._num_reserved = num_prompt + num_response

    # --- while it runs

    def ran(self, num_response: int, *, blocked: bool) -> None:
        """A choice is over that the engine had begun: so many tokens of response, and whether the policy blocked it."""
        self._has_begun = True
        self._num_response += num_response
        self._is_blocked = self._is_blocked or blocked

    # --- when it is over

    async def settle(self) -> None:
        """Give back what was reserved and not used, or take what was used beyond. Raises LimitsUnavailableError.

        May be called again: what was settled is not settled twice.
        """
        used = self._num_prompt + self._num_response if self._has_begun else 0
        beyond, self._num_reserved = used - self._num_reserved, used
        strike, self._is_struck = self._is_blocked and not self._is_struck, self._is_blocked
        draws = [Draw(limit, beyond, 0) for limit in self._of(Unit.TOKENS) if beyond]
        draws += [Draw(limit, 1, 0) for limit in self._of(Unit.BLOCKS) if strike]
        if self._store is not None and draws:
            await self._store.settle(draws)

    @property
    def headers(self) -> dict[str, str]:
        """`x-ratelimit-…`, as OpenAI names them; of several limits on the same, the tightest."""
        shown: dict[str, str] = {}
        for unit, level in self._levels.items():
            if unit in _SHOWN:
                shown[f"x-ratelimit-limit-{unit}"] = str(level.draw.limit.capacity)
                shown[f"x-ratelimit-remaining-{unit}"] = str(max(0, floor(level.held)))
                shown[f"x-ratelimit-reset-{unit}"] = duration(level.reset_s)
        return shown

    # ---

    def _of(self, unit: Unit) -> list[Limit]:
        return [limit for limit in self._limits if limit.unit is unit]

    async def _take(self, draws: Sequence[Draw]) -> None:
        if self._store is None or not draws:
            return
        taken = await self._store.take(draws)
        self._levels |= _tightest(taken.levels)
        if not taken.allowed:
            raise OverLimitError(_why(taken))


def _tightest(levels: Iterable[Level]) -> dict[Unit, Level]:
    by_unit: dict[Unit, Level] = {}
    for level in levels:
        unit = level.draw.limit.unit
        if unit not in by_unit or level.held < by_unit[unit].held:
            by_unit[unit] = level
    return by_unit


def _why(taken: Taken) -> OverLimit:
    """The bucket that takes longest to fill, for until then none of the rest matters."""
    short = [level for level in taken.levels if level.is_short]
    worst = max(short, key=lambda level: (_is_too_large(level.draw), level.wait_s))
    limit = worst.draw.limit
    wait_s = None if _is_too_large(worst.draw) else worst.wait_s
    return OverLimit(limit.unit, limit.capacity, limit.period_s, ceil(worst.draw.needed), wait_s)


def _is_too_large(draw: Draw) -> bool:
    return draw.needed > draw.limit.capacity


def duration(seconds: float) -> str:
    """As OpenAI writes them: `20ms`, `7s`, `6m0s`."""
    if seconds < 1:
        return f"{ceil(seconds * 1000)}ms"
    minutes, rest = divmod(ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
