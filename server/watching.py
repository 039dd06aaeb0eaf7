"""Waits for files to change and then to stand still. By content: a ConfigMap mount changes by swapping a symlink, which
fools modification times and notifications."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from anyio import to_thread

Digest = TypeVar("Digest")


async def watch(
    look: Callable[[], Digest],
    in_force: Callable[[], Digest],
    reload: Callable[[], Awaitable[object]],
    poll_s: float,
) -> None:
    """Call `reload` whenever what `look` finds has changed and then stood still for one poll. Neither may raise."""
    tried = seen = in_force()
    while True:
        await asyncio.sleep(poll_s)
        found = await to_thread.run_sync(look)
        if found == seen and found not in (tried, in_force()):
            tried = found  # what is wrong is told once, not every two seconds
            await reload()
        seen = found
