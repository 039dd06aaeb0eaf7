"""How late the event loop is: whatever holds it up holds up every request."""

import asyncio
from collections.abc import Callable

_EVERY_S = 0.5


async def watch_lag(observe: Callable[[float], None]) -> None:
    """Ask to be woken again and again, and tell by how many seconds that was late."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _EVERY_S
        await asyncio.sleep(_EVERY_S)
        observe(max(0.0, loop.time() - due))
