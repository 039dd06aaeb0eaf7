"""Real servers on real sockets: uvicorn in a thread, the stock OpenAI client in front."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import orjson
import pytest
import uvicorn

from guard.policy import Policy
from guard.types import VectorInfo
from monitors.artifacts import MonitorSet
from server.app import create_app
from server.assemble import create_metrics, monitor_breakers, open_audit, second_opinions
from server.engines.base import Engine, EngineRequest
from server.engines.scripted import Script, ScriptedEngine
from server.engines.transformers.engine import EngineSettings, TransformersEngine
from server.engines.transformers.model import LoadedModel, prepare
from server.http_protocol import HttpProtocol
from server.policy_store import PolicyStore, Sources
from server.scheduling.line import Line
from server.second_opinion.config import Target
from server.service import Service
from server.tokenizer import ByteTokenizer, ModelTokenizer, Tokenizer
from tests.integration.conftest import monitors_for
from tests.tiny_models import TINY
from tests.tiny_tokenizer import tiny_tokenizer
from tests.waiting import until

ALLOW_ONLY = """
apiVersion: interlock/v1
kind: Policy
metadata: {name: allow-only, version: "1"}
rules:
  - {id: note, when: max(response.harm) > 2, then: {log: {}}}
"""
ALLOW_COSINE = ALLOW_ONLY.replace("harm", "cosine")  # a monitor of the tiny model


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Live:
    """A running server and ways to talk to it."""

    url: str
    service: Service
    audit_path: Path
    loop: asyncio.AbstractEventLoop
    client: openai.OpenAI = field(init=False)
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0)
        self.http = httpx.Client(base_url=self.url, timeout=60)

    @property
    def model(self) -> str:
        return self.service.engine.info.model_id

    def chat(self, text: str = "hello", **options: Any) -> Any:
        return self.client.chat.completions.create(
            model=self.model, messages=[{"role": "user", "content": text}], **options
        )

    def reload(self, **options: bool) -> Policy:
        """Put the policy on disk in force; raises what is wrong with it."""
        return asyncio.run_coroutine_threadsafe(self.service.reload_policy(**options), self.loop).result(30)

    def metric(self, name: str, **labels: str) -> float:
        return self.service.metrics.registry.get_sample_value(name, labels) or 0.0

    def records(self) -> list[dict[str, Any]]:
        """The decision log so far, once the queue is written."""
        until(lambda: self.service.audit.queued == 0)
        time.sleep(0.05)
        return [orjson.loads(line) for line in self.audit_path.read_bytes().splitlines()]

    def wait_until_free(self) -> None:
        """The engine comes to hold nothing."""

        def is_free() -> bool:
            load = self.service.engine.load()
            return (load.running, load.waiting, load.kv_tokens) == (0, 0, 0)

        until(is_free)


@contextlib.contextmanager
def running(service: Service, audit_path: Path, **app_options: Any) -> Iterator[Live]:
    """Serve until the block ends."""
    config = uvicorn.Config(
        create_app(service, **app_options), http=HttpProtocol, port=0, log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    live = Live(f"http://127.0.0.1:{port}", service, audit_path, loops[0])
    try:
        yield live
    finally:
        live.client.close()
        live.http.close()
        server.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive(), "the server did not stop"


def make_service(
    engine: Engine,
    policy: str,
    audit_path: Path,
    tokenizer: Tokenizer | None = None,
    vectors: Sequence[str] = (),
    *,
    targets: Sequence[Target] = (),
    **service_options: Any,
) -> Service:
    policy_path = audit_path.with_suffix(".yaml")
    policy_path.write_text(policy)
    tested = {name: VectorInfo(name, steerable=True, verdict="causal") for name in vectors}
    installed = MonitorSet(engine.monitors)
    names = [target.name for target in targets]
    policies = PolicyStore(Sources(policy_path, None, lambda: installed), vectors=tested, targets=names)
    metrics = create_metrics(engine.info.model_id, policies.current)
    metrics.show_monitors(installed)
    engine.watch_passes(metrics.passed)
    line = service_options.setdefault("line", Line())
    metrics.load.watch(engine.load, line)
    service_options["breakers"] = monitor_breakers(metrics, engine, policies, service_options.get("breakers"))
    if "audit" not in service_options:
        service_options["audit"] = open_audit(audit_path, metrics)
    return Service(
        engine=engine,
        tokenizer=tokenizer or ByteTokenizer(),
        policies=policies,
        metrics=metrics,
        second_opinions=second_opinions(targets, metrics),
        clock=time.monotonic,
        now=lambda: datetime.now(UTC),
        **service_options,
    )


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Live]]:
    """Start servers that play scripts: `serve(policy, script)`, or `serve(policy, engine=…)`."""
    with contextlib.ExitStack() as stack:

        def start(
            policy: str = ALLOW_ONLY,
            script: Script | Callable[[EngineRequest], Script] | None = None,
            *,
            engine: Engine | None = None,
            tokenizer: Tokenizer | None = None,
            monitors: Sequence[str] = ("harm", "deception"),
            vectors: Sequence[str] = ("calm",),
            targets: Sequence[Target] = (),
            service_options: Mapping[str, Any] | None = None,
            **app_options: Any,
        ) -> Live:
            if engine is None:
                played = script if callable(script) else lambda _: script
                engine = ScriptedEngine(played, monitors, vectors=vectors)
            path = tmp_path / f"audit-{time.monotonic_ns()}.jsonl"
            service = make_service(
                engine, policy, path, tokenizer, vectors, targets=targets, **(service_options or {})
            )
            return stack.enter_context(running(service, path, **app_options))

        yield start


@pytest.fixture(scope="session")
def tiny() -> LoadedModel:
    return prepare(TINY["llama"](), tiny_tokenizer(), model_id="tiny")


@pytest.fixture
def serve_tiny(serve: Callable[..., Live], tiny: LoadedModel) -> Callable[..., Live]:
    """Start servers of the in-process engine on a tiny random model, with its monitors: `serve_tiny(policy, max_batch=4)`."""

    def start(
        policy: str = ALLOW_COSINE, *, service_options: Mapping[str, Any] | None = None, **sizes: Any
    ) -> Live:
        settings = EngineSettings(**{"max_batch": 4, **sizes})
        return serve(
            policy,
            engine=TransformersEngine(tiny, monitors_for(tiny), settings),
            tokenizer=ModelTokenizer(tiny.tokenizer),
            vectors=("push", "erase"),
            service_options=service_options,
        )

    return start


def scores(value: float = 0.1, count: int = 2000, **spikes: Mapping[int, float]) -> dict[str, list[float]]:
    """Flat scores of the two monitors, with spikes: `scores(harm={3: 0.9})`."""
    series = {name: [value] * count for name in ("harm", "deception")}
    for name, at in spikes.items():
        for index, spike in at.items():
            series[name][index] = spike
    return series
