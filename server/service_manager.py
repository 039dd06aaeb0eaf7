"""Tells systemd how the process is (sd_notify): ready, reloading, stopping, and alive for its watchdog. Elsewhere it does nothing."""

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress


class ServiceManager:
    """Whoever started this process with `Type=notify`; nobody, if `NOTIFY_SOCKET` is not set."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):  # a socket without a file
            self._address = "\0" + self._address[1:]
        self._watchdog_s = int(environment.get("WATCHDOG_USEC", "0")) / 1e6

    def tell(self, state: str) -> None:
        """`READY=1`, `STOPPING=1`, … What systemd does not hear is no reason to stop serving."""
        if not self._address:
            return
        with (
            suppress(OSError),  # it may be full or gone, or there is no file descriptor left
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out,
        ):
            out.settimeout(0)
            out.sendto(state.encode(), self._address)

    async def keep_alive(self, is_alive: Callable[[], bool]) -> None:
        """Feed the watchdog (`WatchdogSec=`) for as long as `is_alive`: what Kubernetes asks with a liveness probe."""
        if not self._watchdog_s:
            return
        while True:
            if is_alive():
                self.tell("WATCHDOG=1")
            await asyncio.sleep(self._watchdog_s / 3)
