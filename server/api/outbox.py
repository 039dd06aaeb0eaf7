"""What of a stream was made and is not sent yet. A task of its own sends it, so that the model does not wait for the socket.

It is bounded: while it is full, the stream's choices pause, and no other does. A client that leaves it full for too long, or
takes nothing of the end, is given up.
"""

import asyncio
from collections import deque

from starlette.types import Send

MAX_BYTES, MAX_FRAMES = 256 * 1024, 512
_SEND_BYTES = 16 * 1024  # at a time: what is sent counts as taken, so not too much
_LOOKS = (
    30  # waiting is counted in looks: if this process is stopped for a while, that is not the client's fault
)


class ClientStalledError(Exception):
    """The client takes nothing."""


class Outbox:
    """`put` frames and `finish`, while a task is in `run`."""

    def __init__(self, send: Send, stalled_s: float) -> None:
        self._send = send
        self._stalled_s = stalled_s
        self._frames: deque[bytes] = deque()
        self._num_bytes = 0  # not sent yet, those on their way included
        self._num_frames = 0
        self._is_finished = False
        self._filled = asyncio.Event()
        self._roomy = asyncio.Event()  # half empty
        self._moved = asyncio.Event()  # something was sent
        self._sent = asyncio.Event()  # all of it

    async def put(self, frame: bytes) -> None:
        """Take a frame; wait while there is no room for more. Raises ClientStalledError."""
        self._add(frame)
        if self._num_bytes >= MAX_BYTES or self._num_frames >= MAX_FRAMES:
            self._roomy.clear()
            await self._patiently(self._roomy)

    async def finish(self, frame: bytes) -> None:
        """Take the last frame, and wait until all is sent. Raises ClientStalledError."""
        self._is_finished = True
        self._add(frame)
        while not self._sent.is_set():
            self._moved.clear()
            await self._patiently(self._moved)

    async def run(self) -> None:
        """Send what comes, up to the last frame."""
        while not self._sent.is_set():
            await self._filled.wait()
            frames = self._take()
            data = b"".join(frames)
            is_last = self._is_finished and not self._frames
            await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})
            self._num_bytes -= len(data)
            self._num_frames -= len(frames)
            if self._num_bytes <= MAX_BYTES // 2 and self._num_frames <= MAX_FRAMES // 2:
                self._roomy.set()
            if is_last:
                self._sent.set()
            self._moved.set()

    def _add(self, frame: bytes) -> None:
        self._frames.append(frame)
        self._num_bytes += len(frame)
        self._num_frames += 1
        self._filled.set()

    def _take(self) -> list[bytes]:
        frames = [self._frames.popleft()]
        size = len(frames[0])
        while self._frames and size + len(self._frames[0]) <= _SEND_BYTES:
            frames.append(self._frames.popleft())
            size += len(frames[-1])
        if not self._frames:
            self._filled.clear()
        return frames

    async def _patiently(self, event: asyncio.Event) -> None:
        for _ in range(_LOOKS):
            try:
                async with asyncio.timeout(self._stalled_s / _LOOKS):
                    await event.wait()
                    return
            except TimeoutError:
                continue
        raise ClientStalledError
