"""Real clients, each driven in a process of its own over one protocol (`drivers/protocol.py`), in front of the servers of the e2e tests."""

import json
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import serve

__all__ = ["serve"]

DRIVERS = Path(__file__).parent / "drivers"
ENVIRONMENT = Path(__file__).parents[2] / ".venv-clients"
PYTHON = str(ENVIRONMENT / "bin" / "python")
PATIENCE_S = 120  # of a client that starts or answers; to import the slowest takes ten seconds alone

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "openai-python": (PYTHON, "openai_python.py"),
    "openai-node": ("node", "openai_node.mjs"),
    "litellm": (PYTHON, "litellm_sdk.py"),
    "langchain": (PYTHON, "langchain_chat.py"),
    "curl": (sys.executable, "curl.py"),
}

Answer = dict[str, Any]


class Driver:
    """One client. Its process starts when it is first asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        program, script = COMMANDS[name]
        self._process = subprocess.Popen(  # noqa: S603  # ours
            [program, script], cwd=DRIVERS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._next() == {"ready": True}

    def ask(
        self,
        do: str,
        url: str,
        *,
        model: str = "scripted",
        key: str = "unused",
        text: str = "hello",
        stream: bool = False,
        retries: int = 0,
        tools: list[Any] | None = None,
        on_piece: Callable[[str], None] = lambda _: None,
        options: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Answer:
        """What the client made of the reply. `on_piece` sees each piece of a stream as soon as the client gives it."""
        ask = {"do": do, "base_url": url, "model": model, "api_key": key, "text": text, "stream": stream}
        ask |= {"retries": retries, "tools": tools, "options": options or {}, **more}
        self._process.stdin.write(json.dumps(ask) + "\n")
        self._process.stdin.flush()
        while "piece" in (told := self._next()):
            on_piece(told["piece"])
        return told

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._reader.join()
        self._process.stdout.close()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _next(self) -> Answer:
        line = self._lines.get(timeout=PATIENCE_S)
        assert line, f"the driver of {self.name} ended"
        return json.loads(line)


def missing(name: str) -> str | None:
    """Why a client can't be driven here."""
    if name == "curl":
        return None if shutil.which("curl") else "needs curl"
    if name == "openai-node":
        has_package = (DRIVERS / "node_modules" / "openai").is_dir()
        return None if shutil.which("node") and has_package else "needs node, npm and `make setup-clients`"
    return None if Path(PYTHON).exists() else "needs `make setup-clients`"


@pytest.fixture(scope="session")
def drivers() -> Iterator[Callable[[str], Driver]]:
    """A client by name, started once per run; skips where it isn't installed."""
    started: dict[str, Driver] = {}

    def get(name: str) -> Driver:
        if reason := missing(name):
            pytest.skip(reason)
        if name not in started:
            started[name] = Driver(name)
        return started[name]

    yield get
    for driver in started.values():
        driver.close()


@pytest.fixture(params=list(COMMANDS))
def client(request: pytest.FixtureRequest, drivers: Callable[[str], Driver]) -> Driver:
    """Each client in turn."""
    return drivers(request.param)


@pytest.fixture
def first_piece() -> Iterator[threading.Event]:
    """That the client has seen something: scripts are held by it."""
    event = threading.Event()
    yield event
    event.set()
