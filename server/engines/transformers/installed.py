"""The monitors on a model, and their exchange while requests run.

First the new ones are installed beside the old ones; after a grace, in which requests that were admitted before have
reached the engine, those that then run are waited for; then the old ones go.
"""

import asyncio
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from monitors.artifacts import MonitorSet
from monitors.bank import Bank
from monitors.runtime import Runtime
from monitors.steering import SteeringVector


@dataclass(slots=True, eq=False)
class _Exchange:
    """Monitors on their way in and out."""

    both: MonitorSet
    both_bank: Bank
    new: MonitorSet
    new_bank: Bank
    begun: asyncio.Future[None]
    done: asyncio.Future[None]
    grace_over: bool = False
    leaving: set[str] | None = None  # requests that may still use the old ones; None: not known yet


class Installed:
    """What a runtime reads and steers with. Called from the event loop; `advance` only while no forward pass runs."""

    def __init__(
        self, runtime: Runtime, monitors: MonitorSet, *, grace_s: float, wake: Callable[[], None]
    ) -> None:
        self.current = monitors
        self.vectors: Mapping[str, SteeringVector] = monitors.vectors  # during an exchange the old ones, too
        self._runtime = runtime
        self._grace_s = grace_s
        self._wake = wake
        self._lock = asyncio.Lock()
        self._exchange: _Exchange | None = None

    async def exchange(self, fresh: MonitorSet) -> None:
        """Returns when `fresh` is installed. Raises HookPointError; then the old ones stay."""
        async with self._lock:
            if self._exchange is not None:  # one at a time
                await asyncio.shield(self._exchange.done)
            old, loop = self.current, asyncio.get_running_loop()
            both = MonitorSet(
                (*fresh.monitors, *(monitor for monitor in old.monitors if monitor not in fresh.monitors)),
                {**old.vectors, **fresh.vectors},
            )
            device = self._runtime.bank.device
            both_bank, new_bank = [
                await loop.run_in_executor(None, monitors.bank, device) for monitors in (both, fresh)
            ]
            self._exchange = _Exchange(
                both, both_bank, fresh, new_bank, loop.create_future(), loop.create_future()
            )
            self._wake()
            await asyncio.shield(self._exchange.begun)

    def advance(self, running: AbstractSet[str]) -> None:
        """Between two steps: take the next step of an exchange that was asked for. `running`: ids of all requests."""
        exchange = self._exchange
        if exchange is None:
            return
        if not exchange.begun.done():
            try:
                self._runtime.install(exchange.both_bank, exchange.both.vectors)
            except Exception as error:  # noqa: BLE001  # told to whoever asked; the old ones stay
                self.cancel(error)
                return
            self.current, self.vectors = exchange.new, exchange.both.vectors
            exchange.begun.set_result(None)
            asyncio.get_running_loop().call_later(self._grace_s, self._end_grace, exchange)
        if not exchange.grace_over:
            return
        if exchange.leaving is None:
            exchange.leaving = set(running)
        exchange.leaving &= running
        if not exchange.leaving:
            self._runtime.install(exchange.new_bank, exchange.new.vectors)
            self.vectors = exchange.new.vectors
            self._exchange = None
            exchange.done.set_result(None)

    def cancel(self, error: Exception) -> None:
        """Give up an exchange that has not begun."""
        exchange = self._exchange
        if exchange is not None and not exchange.begun.done():
            self._exchange = None
            exchange.begun.set_exception(error)
            exchange.done.set_result(None)

    def _end_grace(self, exchange: _Exchange) -> None:
        exchange.grace_over = True
        self._wake()
