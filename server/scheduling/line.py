"""The line before the engine: bounded, fair between tenants, by priority within one.

The next place goes to the tenant that holds the fewest for its weight, and of those to the one that was served least: one
that sends a thousand requests waits for its own, and one that sends its first waits for hardly any. Requests wait here and
not in the engine, because nothing is chosen for them before their turn: neither the policy nor the monitors.
"""

import asyncio
import heapq
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from server.scheduling.types import ClientGoneError, Reason, Standing, TurnedAwayError

_LOOK_S = 1.0  # how often somebody who waits is looked after
_LEARNING = 0.1  # weight of the newest hold in the running mean
_RETRY_S = (1.0, 60.0)


@dataclass(slots=True, order=True)
class _Waiter:
    priority: int
    number: int  # in order of arrival
    size: int = field(compare=False)
    granted: asyncio.Future[None] = field(compare=False)


@dataclass(slots=True)
class _Tenant:
    weight: float
    served: float  # places granted for its weight, counted from where the others were when it came
    running: int = 0
    waiting: list[_Waiter] = field(default_factory=list)  # a heap

    @property
    def num_waiting(self) -> int:
        return sum(waiter.size for waiter in self.waiting)

    @property
    def rank(self) -> tuple[float, float, int]:
        """The lowest is next."""
        return self.running / self.weight, self.served, self.waiting[0].number


class Line:
    """Places for `slots` responses at a time. A request of several is let in whole as soon as one is free."""

    def __init__(
        self,
        *,
        slots: int = 1_000_000,
        max_waiting: int = 0,
        timeout_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_waiting` in responses; `timeout_s`: nobody waits longer. By default everybody is let in."""
        self._slots = slots
        self._max_waiting = max_waiting
        self._timeout_s = timeout_s
        self._clock = clock
        self._tenants: dict[str, _Tenant] = {}  # those with anything running or waiting
        self._running = 0
        self._count = 0
        self._served = 0.0  # of the tenant that was served last
        self._hold_s: float | None = None  # running mean of how long a place is held
        self._is_closed = False

    @property
    def waiting(self) -> int:
        return sum(tenant.num_waiting for tenant in self._tenants.values())

    @property
    def running(self) -> int:
        return self._running

    @property
    def tenants(self) -> dict[str, tuple[int, int]]:
        """Of each that has any: responses that run, and that wait."""
        return {name: (tenant.running, tenant.num_waiting) for name, tenant in self._tenants.items()}

    def check(self, who: Standing) -> None:
        """Before anything is done for a request: whether it could wait. Raises TurnedAwayError."""
        if self._is_closed:
            raise self._turned_away("draining", who)
        if self._running < self._slots:
            return
        if self._expected_s(who) > self._timeout_s:
            raise self._turned_away("queue_timeout", who)
        if self.waiting >= self._max_waiting and self._crowding(who) is None:
            raise self._turned_away("queue_full", who)

    async def enter(self, who: Standing, size: int, is_gone: Callable[[], Awaitable[bool]]) -> None:
        """Wait for a place. Raises TurnedAwayError and ClientGoneError."""
        self.check(who)
        tenant = self._tenants.setdefault(who.tenant, _Tenant(who.weight, self._served))
        tenant.weight = who.weight
        self._count += 1
        waiter = _Waiter(who.priority, self._count, size, asyncio.get_running_loop().create_future())
        heapq.heappush(tenant.waiting, waiter)
        self._grant()
        self._make_room(who)
        try:
            await self._wait(waiter, who, is_gone)
        except BaseException:
            if waiter.granted.done() and not waiter.granted.cancelled() and not waiter.granted.exception():
                self._give_back(who.tenant, size)
            self._forget(who.tenant, waiter)
            raise

    def leave(self, who: Standing, size: int, held_s: float) -> None:
        """Give a place back."""
        learned = held_s if self._hold_s is None else self._hold_s
        self._hold_s = learned + _LEARNING * (held_s - learned)
        self._give_back(who.tenant, size)

    def close(self) -> None:
        """Turn away who waits, and whoever comes."""
        self._is_closed = True
        for name, tenant in list(self._tenants.items()):
            for waiter in list(tenant.waiting):
                self._turn_out(waiter, "draining", Standing(name, tenant.weight))

    # ---

    async def _wait(self, waiter: _Waiter, who: Standing, is_gone: Callable[[], Awaitable[bool]]) -> None:
        until = self._clock() + self._timeout_s
        while not waiter.granted.done():
            left_s = until - self._clock()
            if left_s <= 0:
                raise self._turned_away("queue_timeout", who)
            await asyncio.wait([waiter.granted], timeout=min(_LOOK_S, left_s))
            if await is_gone():  # also when its turn has come: nothing is begun for nobody
                raise ClientGoneError
        waiter.granted.result()

    def _grant(self) -> None:
        while self._running < self._slots:
            waiting = [name for name, tenant in self._tenants.items() if tenant.waiting]
            if not waiting:
                return
            tenant = self._tenants[min(waiting, key=lambda name: self._tenants[name].rank)]
            waiter = heapq.heappop(tenant.waiting)
            tenant.served += waiter.size / tenant.weight
            self._served = max(self._served, tenant.served)
            tenant.running += waiter.size
            self._running += waiter.size
            waiter.granted.set_result(None)

    def _give_back(self, name: str, size: int) -> None:
        self._tenants[name].running -= size
        self._running -= size
        self._forget(name)
        self._grant()

    def _forget(self, name: str, waiter: _Waiter | None = None) -> None:
        """Take a waiter out, and a tenant that has nothing here any more."""
        tenant = self._tenants.get(name)
        if tenant is None:
            return
        if waiter in tenant.waiting:
            tenant.waiting.remove(waiter)
            heapq.heapify(tenant.waiting)
        if not tenant.waiting and not tenant.running:
            del self._tenants[name]

    def _crowding(self, who: Standing) -> str | None:
        """The tenant with the most waiting for its weight, if that is more than `who` would have: it must make room."""
        own = self._tenants.get(who.tenant)
        mine = ((own.num_waiting if own else 0) + 1) / who.weight
        crowds = {name: tenant.num_waiting / tenant.weight for name, tenant in self._tenants.items()}
        name = max(crowds, key=lambda name: crowds[name], default=None)
        return name if name is not None and crowds[name] > mine and name != who.tenant else None

    def _make_room(self, who: Standing) -> None:
        """While too many wait, the last of the tenant that has the most goes."""
        while self.waiting > self._max_waiting:
            name = max(self._tenants, key=lambda n: self._tenants[n].num_waiting / self._tenants[n].weight)
            tenant = self._tenants[name]
            self._turn_out(max(tenant.waiting), "queue_full", Standing(name, tenant.weight))

    def _turn_out(self, waiter: _Waiter, reason: Reason, who: Standing) -> None:
        waiter.granted.set_exception(self._turned_away(reason, who))
        self._forget(who.tenant, waiter)

    def _expected_s(self, who: Standing) -> float:
        """How long who comes now would wait, by how long places were held so far: those of its tenant who wait, on its share."""
        if self._hold_s is None:
            return 0.0
        own = self._tenants.get(who.tenant)
        weights = sum(tenant.weight for name, tenant in self._tenants.items() if name != who.tenant)
        share = self._slots * who.weight / (who.weight + weights)
        return (own.num_waiting if own else 0) * self._hold_s / share

    def _turned_away(self, reason: Reason, who: Standing) -> TurnedAwayError:
        low, high = _RETRY_S
        return TurnedAwayError(reason, min(high, max(low, self._expected_s(who))))
