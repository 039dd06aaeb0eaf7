"""A server in a process of its own, for what only a process can show: signals, exit codes, ports before the model is there.

Its engine plays a script that a test holds open. The process is forked from one that has imported everything, so that
each test does not wait for that.
"""

import asyncio
import contextlib
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import openai

from server import serve
from server.auditing.writer import AuditLog
from server.config import ServerConfig
from server.engines.scripted import Script, ScriptedEngine
from server.keys.store import KeyStore
from server.policy_store import PolicyStore, Sources
from server.ports import open_ports
from tests.e2e.conftest import make_service, scores
from tests.waiting import until

POLICY = """
apiVersion: interlock/v1
kind: Policy
metadata: {name: p, version: "%s"}
rules:
  - {id: note, when: max(response.harm) > 0.5, then: {annotate: {}}}
tests:
  - {name: t, given: {response: {harm: "0.9"}}, expect: {action: annotate}}
"""
HELLO = [{"role": "user", "content": "hello"}]
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.e2e.lifecycle_server"])


class _Engine(ScriptedEngine):
    """Plays a script; may be told not to stop, as if a step hung."""

    never_stops = False

    async def stop(self) -> None:
        await super().stop()
        while self.never_stops:  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.01)


def main(
    settings: Mapping[str, Any], folder: Path, control: Connection, step_end_s: float, disk_s: float
) -> None:
    """Serve until a signal. `control` tells the ports, then takes orders. `disk_s`: seconds that each record takes to write."""
    sys.stderr = (folder / "stderr").open("w", buffering=1)
    os.dup2(sys.stderr.fileno(), 2)
    serve.set_up_logging()
    serve._STEP_END_S = step_end_s
    config = ServerConfig(host="127.0.0.1", port=0, admin_port=0, **settings)
    api, admin = open_ports(config)
    control.send((api.url, admin.url))
    load, hold = threading.Event(), threading.Event()
    script = Script(["a", "b", "c"], scores(), scores(), hold=hold)
    engine = _Engine(lambda request: script, ("harm", "deception"))

    def obey() -> None:
        with contextlib.suppress(EOFError):
            while order := control.recv():
                match order:
                    case "load":
                        load.set()
                    case "go":
                        hold.set()
                    case "hang":
                        engine.never_stops = True

    def slowly(file: int, data: bytes) -> int:
        time.sleep(disk_s)
        return os.write(file, data)

    def loaded() -> Any:
        load.wait()
        keys = KeyStore(config.keys, lambda: datetime.now(UTC)) if config.keys else None
        shown = config.model_dump(mode="json")
        audit = AuditLog(folder / "audit.jsonl", write=slowly)
        service = make_service(
            engine, POLICY % 1, folder / "audit.jsonl", keys=keys, settings=shown, audit=audit
        )
        policies = PolicyStore(
            Sources(folder / "audit.yaml", None, lambda: service.policies.in_force.monitors)
        )
        object.__setattr__(service, "policies", policies)
        return service

    threading.Thread(target=obey, daemon=True).start()
    serve.run(loaded, config, api, admin)


@dataclass
class Served:
    """A running process, and ways to talk to it."""

    process: BaseProcess
    control: Connection
    folder: Path
    api: str
    admin: str
    key: str
    http: httpx.Client = field(init=False)
    client: openai.OpenAI = field(init=False)

    def __post_init__(self) -> None:
        headers = {"authorization": f"Bearer {self.key}"}
        self.http = httpx.Client(timeout=60, headers=headers, verify=False)  # noqa: S501  # test_tls.py verifies
        self.client = openai.OpenAI(base_url=f"{self.api}/v1", api_key=self.key, max_retries=0)

    def tell(self, order: str) -> None:
        self.control.send(order)

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def get(self, path: str, port: str = "") -> httpx.Response:
        return self.http.get(f"{port or self.admin}{path}")

    def chat(self, **options: Any) -> Any:
        return self.client.chat.completions.create(model="scripted", messages=HELLO, **options)

    def load(self) -> None:
        self.tell("load")
        until(lambda: self.get("/readyz").status_code == 200)

    def until_phase(self, phase: str) -> None:
        until(lambda: self.get("/-/drain").json()["phase"] == phase)

    def until_running(self, count: int) -> None:
        until(lambda: self.get("/-/drain").json()["running"] == count)

    @property
    def exit_code(self) -> int | None:
        """Once it has ended by itself."""
        self.process.join(60)
        return self.process.exitcode

    @property
    def said(self) -> str:
        return (self.folder / "stderr").read_text()


@contextlib.contextmanager
def served(
    folder: Path,
    *,
    key: str = "none",
    loaded: bool = True,
    step_end_s: float = 0.5,
    disk_s: float = 0.0,
    **settings: Any,
) -> Iterator[Served]:
    ours, its = _PROCESSES.Pipe()
    process = _PROCESSES.Process(target=main, args=(settings, folder, its, step_end_s, disk_s))
    process.start()
    its.close()
    try:
        api, admin = ours.recv()
        live = Served(process, ours, folder, api, admin, key)
        with live.http, live.client:
            if loaded:
                live.load()
            yield live
    finally:
        process.kill()
        process.join()
        ours.close()
