"""The keys in force, and whom a key stands for. What is not known for certain is refused."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Literal

import structlog
from anyio import to_thread

from guard.errors import PolicyError
from server.keys.file import KeyFile, parse_keys, read_key_bytes
from server.keys.secret import hash_of, split
from server.keys.types import Client
from server.limits.allowance import Allowance
from server.limits.memory import MemoryStore
from server.limits.types import LimitStore
from server.scheduling.types import Standing
from server.watching import watch

_log = structlog.get_logger()

Reason = Literal["missing", "malformed", "unknown", "wrong", "expired", "scope"]
"""Why a request is refused for its key. `unknown` and `wrong` are told apart in metrics, never to the client."""

_NOBODYS_HASH = bytes(32)


class KeyRefusedError(Exception):
    """This text is no key that counts now."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class KeyStore:
    """Reads the key file, and reads it again when asked to. A file that is wrong changes nothing."""

    def __init__(self, path: Path, now: Callable[[], datetime], limits: LimitStore | None = None) -> None:
        """Raises PolicyError: a server does not start on a key file that is wrong."""
        self._path = path
        self._now = now
        self._limits = limits or MemoryStore(monotonic)
        self._lock = asyncio.Lock()
        self._keys, self._digest = self._read()

    @property
    def num_keys(self) -> int:
        return len(self._keys.keys)

    @property
    def tenants(self) -> frozenset[str]:
        return self._keys.tenants

    def client(self, text: str) -> Client:
        """Whom a key stands for. Raises KeyRefusedError.

        The secret is compared in constant time, also where there is no key of that id.
        """
        parts = split(text)
        if parts is None:
            raise KeyRefusedError("malformed")
        key_id, secret = parts
        key = self._keys.keys.get(key_id)
        is_right = secrets.compare_digest(
            hash_of(secret), _NOBODYS_HASH if key is None else key.secret_sha256
        )
        if key is None:
            raise KeyRefusedError("unknown")
        if not is_right:
            raise KeyRefusedError("wrong")
        if key.expires is not None and key.expires <= self._now():
            raise KeyRefusedError("expired")
        standing = Standing(key.tenant, key.weight, key.priority)
        allowance = Allowance(self._limits, key.limits)
        return Client(key.tenant, key.id, key.scopes, standing, allowance, key.block_style)

    async def reload(self) -> None:
        """Put the file on disk in force. Raises PolicyError; then the last good keys stay."""
        async with self._lock:
            self._keys, self._digest = await to_thread.run_sync(self._read)
        _log.info("keys reloaded", keys=self.num_keys, tenants=len(self.tenants))

    async def watch(self, reload: Callable[[], Awaitable[object]], poll_s: float) -> None:
        """Call `reload`, which must not raise, when the file has changed."""
        await watch(self._look, lambda: self._digest, reload, poll_s)

    async def close(self) -> None:
        """Let go of the limits' connections."""
        await self._limits.close()

    def _read(self) -> tuple[KeyFile, str]:
        data = read_key_bytes(self._path)
        return parse_keys(data, self._path), sha256(data).hexdigest()

    def _look(self) -> str:
        try:
            return sha256(read_key_bytes(self._path)).hexdigest()
        except PolicyError:
            return "unreadable"
