"""Both ports of a server on real sockets, and everything that it writes down."""

import asyncio
import contextlib
import io
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import structlog
import uvicorn
from fastapi import FastAPI

from server.app import create_admin_app, create_app
from server.engines.scripted import Script, ScriptedEngine
from server.http_protocol import HttpProtocol
from server.service import Service
from tests.e2e.conftest import make_service, scores

POLICY = """
apiVersion: interlock/v1
kind: Policy
metadata: {name: fuzz, version: "1"}
rules:
  - {id: note, when: max(response.harm) > 2, then: {log: {}}}
"""


@dataclass
class Logs:
    """What the server logs, as an operator would see it at the most verbose."""

    written: io.StringIO = field(default_factory=io.StringIO)

    @property
    def text(self) -> str:
        return self.written.getvalue()


@pytest.fixture(scope="session")
def logs() -> Iterator[Logs]:
    found = Logs()
    handler = logging.StreamHandler(found.written)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    for chatty in ("httpcore", "httpx", "httpx2", "urllib3", "asyncio"):  # the clients' own, not the server's
        logging.getLogger(chatty).setLevel(logging.WARNING)
    configured = structlog.get_config()
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(found.written),
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        cache_logger_on_first_use=False,
    )
    yield found
    structlog.configure(**configured)
    root.removeHandler(handler)
    root.setLevel(before)


@dataclass
class Ports:
    """A server's two ports."""

    service: Service
    api: str
    admin: str
    logs: Logs
    audit: Any  # the decision log's path
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60))

    def is_well(self) -> None:
        """An ordinary request is answered."""
        body = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}
        reply = self.http.post(f"{self.api}/v1/chat/completions", json=body)
        assert (reply.status_code, reply.json()["choices"][0]["message"]["content"]) == (200, "a b c")

    @property
    def metrics(self) -> str:
        return self.http.get(f"{self.admin}/metrics").text


@contextlib.contextmanager
def listening(*apps: FastAPI) -> Iterator[list[str]]:
    """The URLs of applications that share one event loop, as in the process that serves, until the block ends."""
    servers = [
        uvicorn.Server(
            uvicorn.Config(app, http=HttpProtocol, port=0, log_config=None, access_log=False, ws="none")
        )
        for app in apps
    ]

    async def serve() -> None:
        await asyncio.gather(*(server.serve() for server in servers))

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    while not all(server.started for server in servers):
        assert thread.is_alive(), "the server did not start"
        thread.join(0.005)
    yield [f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}" for server in servers]
    for server in servers:
        server.should_exit = True
    thread.join(30)
    assert not thread.is_alive(), "the server did not stop"


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory, logs: Logs) -> Iterator[Ports]:
    """Of a scripted server, for all tests of a module."""
    path = tmp_path_factory.mktemp("fuzz") / "decisions.jsonl"
    script = Script(["a ", "b ", "c"], scores(count=200_000), scores(count=10))
    engine = ScriptedEngine(lambda _: script, ("harm", "deception"), vectors=("calm",))
    service = make_service(engine, POLICY, path, vectors=("calm",))
    with listening(create_app(service, expose_metrics=True), create_admin_app(service)) as (api, admin):
        found = Ports(service, api, admin, logs, path)
        yield found
        found.http.close()
