"""A judge on a real socket, whose answers a test chooses: it speaks chat completions, moderations and webhooks."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

Behave = Callable[[dict[str, Any]], Awaitable[Response]]


@dataclass
class Asked:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    raw: bytes


@dataclass
class Judge:
    """`behave` answers; `arrived` is set as soon as one request is there; `release` lets those go that wait."""

    behave: Behave | None = None
    asked: list[Asked] = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)
    url: str = ""
    _released: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None

    async def answer(self, request: Request) -> Response:
        raw = await request.body()
        body = json.loads(raw)
        self.asked.append(Asked(request.url.path, dict(request.headers), body, raw))
        self.arrived.set()
        assert self.behave is not None
        return await self.behave(body)

    def says(self, content: Any, **more: Any) -> None:
        """A chat completion whose content this is (as JSON, if it is not a text)."""
        text = content if isinstance(content, str) else json.dumps(content)
        message = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 300, "completion_tokens": 10, "total_tokens": 310}
        self.gives({"choices": [message | more], "usage": usage})

    def allows(self) -> None:
        self.says({"verdict": "allow"})

    def blocks(self, reason: str = "harmful") -> None:
        self.says({"verdict": "block", "reason_code": reason})

    def gives(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        async def give(_: dict[str, Any]) -> Response:
            return JSONResponse(body, status, headers)

        self.behave = give

    def waits(self, then: Callable[[], None]) -> None:
        """Nothing is answered before `release`; then as `then` says."""
        then()
        behave = self.behave
        assert behave is not None

        async def wait(body: dict[str, Any]) -> Response:
            await self._released.wait()
            return await behave(body)

        self.behave = wait

    def drips(self) -> None:
        """A byte now and then, for ever."""

        async def drip(_: dict[str, Any]) -> Response:
            async def bytes_() -> AsyncIterator[bytes]:
                while not self._released.is_set():
                    yield b" "
                    await asyncio.sleep(0.02)

            return StreamingResponse(bytes_(), media_type="application/json")

        self.behave = drip

    def floods(self) -> None:
        """An answer of any length."""

        async def flood(_: dict[str, Any]) -> Response:
            async def bytes_() -> AsyncIterator[bytes]:
                for _ in range(1000):
                    yield b" " * 65536

            return StreamingResponse(bytes_(), media_type="application/json")

        self.behave = flood

    def reset(self) -> None:
        """For the next test."""
        self.behave = None
        self.asked = []
        self.arrived.clear()
        self._released = asyncio.Event()

    def release(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._released.set)


@contextlib.contextmanager
def judging() -> Iterator[Judge]:
    """Serve until the block ends."""
    judge = Judge()
    app = Starlette(routes=[Route("/{path:path}", judge.answer, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))

    async def run() -> None:
        judge._loop = asyncio.get_running_loop()
        await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the judge did not start"
        time.sleep(0.005)
    judge.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield judge
    finally:
        judge.release()
        server.should_exit = True
        thread.join(timeout=15)
        assert not thread.is_alive(), "the judge did not stop"
