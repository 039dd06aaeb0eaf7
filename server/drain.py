"""A server's way out: ready no more but serving until load balancers have noticed, then refusing, then over."""

import asyncio
import contextlib
from collections.abc import Callable
from enum import StrEnum

_LOOK_S = 0.05


class DrainPhase(StrEnum):
    """Of a server, in this order."""

    SERVING = "serving"
    LEAVING = "leaving"  # not ready any more; whoever still comes is served
    REFUSING = "refusing"  # what runs may end, nothing new begins
    OVER = "over"  # nothing runs any more


class Drain:
    """Begun by a signal or by `POST /-/drain`, once; a second signal hurries it."""

    def __init__(self) -> None:
        self.phase = DrainPhase.SERVING
        self._begun = asyncio.Event()
        self._noticed = asyncio.Event()  # no balancer has to notice
        self._hurried = asyncio.Event()

    @property
    def is_begun(self) -> bool:
        """Whether the server is not ready any more."""
        return self.phase is not DrainPhase.SERVING

    @property
    def refuses(self) -> bool:
        """Whether nothing new may begin."""
        return self.phase in {DrainPhase.REFUSING, DrainPhase.OVER}

    def begin(self, *, unnoticed: bool = False) -> None:
        """Turn not ready. `unnoticed`: no load balancer sends requests here, so refuse them at once."""
        if not self.is_begun:
            self.phase = DrainPhase.LEAVING
        self._begun.set()
        if unnoticed:
            self._noticed.set()

    def hurry(self) -> None:
        """Wait for nothing any more."""
        self.begin(unnoticed=True)
        self._hurried.set()

    async def run(self, num_left: Callable[[], int], *, delay_s: float, timeout_s: float) -> int:
        """Go from phase to phase, once begun, until nothing is left or its time is over: how many still run then."""
        await self._begun.wait()
        await _wait(self._noticed, delay_s)
        self.phase = DrainPhase.REFUSING
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while num_left() and not self._hurried.is_set():
                    await _wait(self._hurried, _LOOK_S)
        return num_left()

    def finish(self) -> None:
        """What still ran was ended."""
        self.phase = DrainPhase.OVER


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
