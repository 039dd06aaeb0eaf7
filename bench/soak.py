"""Whether a server that is used hard for long holds in the end what it held in the beginning.

    python -m bench.soak [--minutes 20] [--clients 12] [--round-s 60]

A real `interlock serve` of the demo model is sent a mix of everything: whole and streamed replies on every surface, one
to four choices, clients that leave at any moment, blocks, wrong requests, reloads right and wrong, scrapes. After each
round the load stops, and what the idle server holds is read: memory, open files, threads, the event loop's tasks, the
KV cache, places of the line. Exits 1 where something does not come back, or memory grows.
"""

import argparse
import asyncio
import contextlib
import os
import platform
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import httpx
import numpy as np

from server.keys.secret import NewKey, make_key

_MODEL = "interlock-demo"
_IDLE_WITHIN_S = 60.0
_FEWEST = 4  # samples: a line is fitted through half of them
_PROMPTS = (
    "What is the capital of France?",
    "How do I kill a process that hangs?",
    "Tell me about knots.",
    "Write a line about rain. " * 8,
)
_POLICY = """\
apiVersion: interlock/v1
kind: Policy
metadata: {{name: soak, version: "{version}"}}
defaults: {{holdback: {holdback}}}
rules:
  - id: prompt
    match: {{metadata: {{soak: [prompt]}}}}
    when: max(prompt.harm) >= 0
    then: {{block: {{}}}}
  - id: reply
    match: {{metadata: {{soak: [reply]}}}}
    when: max(response.hostile) >= 0 and tokens() > 6
    then: {{block: {{}}}}
  - id: said
    match: {{metadata: {{soak: [said]}}}}
    when: max(response.hostile) >= 0 and tokens() > 3
    then: {{replace: {{message: "Something else."}}}}
tests:
  - {{name: quiet, given: {{prompt: {{harm: "0.1"}}}}, expect: {{action: allow}}}}
"""


class Server:
    """`interlock serve` in a process of its own, with keys, a decision log that rotates, and a policy to rewrite."""

    def __init__(self, folder: Path) -> None:
        self.api, self.admin = (f"http://127.0.0.1:{port}" for port in _free_ports(2))
        self.keys: dict[str, NewKey] = {name: make_key() for name in ("acme", "clinic", "ops")}
        self._folder = folder
        self._policy = folder / "policy.yaml"
        self._version = 0
        self.rewrite_policy()
        (folder / "keys.yaml").write_text(self._key_file())

    def rewrite_policy(self, *, wrong: bool = False) -> None:
        self._version += 1
        text = _POLICY.format(version=self._version, holdback=self._version % 2 * 4)
        self._policy.write_text(text.replace("max(prompt", "maximum(prompt") if wrong else text)

    @contextlib.contextmanager
    def running(self) -> Iterator["subprocess.Popen[bytes]"]:
        options = {
            "policy": self._policy,
            "keys": self._folder / "keys.yaml",
            "audit": self._folder / "decisions.jsonl",
            "port": self.api.rsplit(":", 1)[1],
            "admin-port": self.admin.rsplit(":", 1)[1],
            "max-batch": 8,
            "max-context": 512,
        }
        settings = {
            "OMP_NUM_THREADS": "1",
            "INTERLOCK__AUDIT_MAX_BYTES": str(4 * 1024 * 1024),
            "INTERLOCK__AUDIT_KEEP": "2",
            "INTERLOCK__PREFIX_CACHE_TOKENS": "2048",
        }
        command = [sys.executable, "-c", "from server.cli import main; main()", "serve"]
        command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
        log = (self._folder / "server.log").open("wb")
        process = subprocess.Popen(command, env=os.environ | settings, stderr=log, stdout=log)  # noqa: S603
        try:
            self._wait_until_ready(process)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            finally:
                process.kill()
                log.close()

    @property
    def log(self) -> str:
        return (self._folder / "server.log").read_text(errors="replace")

    def _wait_until_ready(self, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.api}/health").status_code == httpx.codes.OK:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"the server did not start:\n{self.log}")

    def _key_file(self) -> str:
        text = (
            "apiVersion: interlock/v1\nkind: Keys\ntenants: {acme: {weight: 2}, clinic: {}, ops: {}}\nkeys:\n"
        )
        for name, key in self.keys.items():
            scopes = "admin, debug" if name == "ops" else "infer"
            text += f"  - {{id: '{key.id}', tenant: {name}, sha256: {key.sha256}, scopes: [{scopes}]}}\n"
        return text


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [s.getsockname()[1] for s in sockets]


# --- the load --------------------------------------------------------------------------------------------------------


class Load:
    """Clients that do one thing after another, each drawn by its weight."""

    def __init__(self, server: Server, clients: int, seed: int) -> None:
        self.done: Counter[str] = Counter()  # what was done, and each unexpected status
        self._server = server
        self._clients = clients
        self._random = random.Random(seed)  # noqa: S311  # not a secret
        self._http: httpx.AsyncClient
        self._actions: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (6, self._whole),
            (6, self._streamed),
            (6, self._leave_a_stream),
            (4, self._leave_while_waiting),
            (4, self._blocked),
            (2, self._leave_with_half_a_request),
            (2, self._wrong),
            (2, self._beside_the_model),
            (1, self._reload),
            (1, self._scrape),
        ]

    async def run(self, seconds: float) -> None:
        """Load the server for so long; then all clients have gone."""
        until = time.monotonic() + seconds
        limits = httpx.Limits(max_keepalive_connections=self._clients // 2)  # some connections are used again
        async with httpx.AsyncClient(base_url=self._server.api, timeout=60, limits=limits) as self._http:
            await asyncio.gather(*(self._client(until) for _ in range(self._clients)))

    async def _client(self, until: float) -> None:
        weights, actions = zip(*self._actions, strict=True)
        while time.monotonic() < until:
            (action,) = self._random.choices(actions, weights)
            try:
                await action()
            except httpx.TransportError as error:
                self.done[f"failed: {type(error).__name__}"] += 1
            self.done[action.__name__.strip("_").replace("_", " ")] += 1

    def _request(self, *, stream: bool, cause: str | None = None) -> tuple[str, dict[str, object]]:
        """A path and a body for it."""
        pick = self._random.choice
        text, metadata = pick(_PROMPTS), ({"metadata": {"soak": cause}} if cause else {})
        common = {"model": _MODEL, "stream": stream, "temperature": pick([0, 1]), **metadata}
        user, n, most = [{"role": "user", "content": text}], pick([1, 1, 2, 4]), pick([8, 32, 96])
        kinds: list[tuple[str, dict[str, object]]] = [
            ("/v1/chat/completions", {"messages": user, "n": n, "max_tokens": most, "logprobs": n == 1}),
            ("/v1/completions", {"prompt": text, "n": n, "max_tokens": most, "echo": n == 1, "logprobs": 1}),
            ("/v1/responses", {"input": text, "max_output_tokens": most}),
        ]
        if cause is None:
            kinds.append(("/v1/messages", {"messages": user, "max_tokens": most}))
        path, body = pick(kinds)
        return path, common | body

    @property
    def _key(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._server.keys[self._random.choice(['acme', 'clinic'])].text}"}

    def _note(self, status: int, *expected: int) -> None:
        if status not in expected:
            self.done[f"unexpected: {status}"] += 1

    async def _whole(self) -> None:
        path, body = self._request(stream=False)
        self._note((await self._http.post(path, json=body, headers=self._key)).status_code, 200, 503)

    async def _streamed(self) -> None:
        path, body = self._request(stream=True)
        async with self._http.stream("POST", path, json=body, headers=self._key) as reply:
            self._note(reply.status_code, 200, 503)
            async for _ in reply.aiter_bytes():
                pass

    async def _leave_a_stream(self) -> None:
        path, body = self._request(stream=True)
        patience = self._random.randrange(8)
        async with self._http.stream("POST", path, json=body, headers=self._key) as reply:
            async for _ in reply.aiter_raw():
                patience -= 1
                if patience < 0:
                    break

    async def _leave_while_waiting(self) -> None:
        path, body = self._request(stream=self._random.random() < 0.5)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._random.choice([0.002, 0.02, 0.1, 0.3])):
                await self._http.post(path, json=body, headers=self._key)

    async def _blocked(self) -> None:
        stream = self._random.random() < 0.5
        path, body = self._request(stream=stream, cause=self._random.choice(["prompt", "reply", "said"]))
        self._note((await self._http.post(path, json=body, headers=self._key)).status_code, 200, 400, 503)

    async def _leave_with_half_a_request(self) -> None:
        host, port = self._server.api.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        key = self._key["authorization"]
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: {key}\r\ncontent-length: 999\r\n\r\n"
        sent = head.encode() + b'{"model": "'
        writer.write(sent[: self._random.randrange(1, len(sent))])
        await asyncio.sleep(0.02)
        writer.transport.abort()

    async def _wrong(self) -> None:
        path, body = self._request(stream=False)
        wrong = self._random.choice(
            [{"model": "nobody"}, {"temperature": 9}, {"messages": 1, "prompt": 1, "input": 1}]
        )
        status = (await self._http.post(path, json=body | wrong, headers=self._key)).status_code
        self._note(status, 400, 404)
        self._note((await self._http.post(path, json=body)).status_code, 401)

    async def _beside_the_model(self) -> None:
        text = self._random.choice(_PROMPTS)
        for path, body in (("/v1/moderations", {"input": [text, text]}), ("/tokenize", {"prompt": text})):
            self._note((await self._http.post(path, json=body, headers=self._key)).status_code, 200, 503)
        self._note((await self._http.get("/v1/models", headers=self._key)).status_code, 200)

    async def _reload(self) -> None:
        wrong = self._random.random() < 0.3
        self._server.rewrite_policy(wrong=wrong)
        status = (await self._admin("POST", "/-/reload")).status_code
        self._note(status, 200, 400)  # another client may have written a wrong one meanwhile
        if wrong:
            self._server.rewrite_policy()

    async def _scrape(self) -> None:
        self._note((await self._admin("GET", "/metrics")).status_code, 200)

    async def _admin(self, method: str, path: str) -> httpx.Response:
        headers = {"authorization": f"Bearer {self._server.keys['ops'].text}"}
        return await self._http.request(method, self._server.admin + path, headers=headers)


# --- what the idle server holds --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    minutes: float
    requests: int
    rss_mib: float
    files: int
    threads: int
    tasks: int
    kv_ratio: float
    places: int
    waiting: int


_HELD = {
    "files": "process_open_fds",
    "tasks": "interlock_event_loop_tasks",
    "kv_ratio": "interlock_kv_cache_usage_ratio",
    "places": "interlock_places_taken",
    "waiting": "interlock_requests_waiting",
}
_COMES_BACK = ("files", "tasks", "kv_ratio", "places", "waiting")


def sample(server: Server, pid: int, minutes: float, requests: int, like: Sample | None) -> Sample:
    """Of the idle server: taken as soon as it holds no more than `like`, or when it had its time for that."""
    deadline = time.monotonic() + _IDLE_WITHIN_S
    while True:
        found = _sample(server, pid, minutes, requests)
        rests = (found.kv_ratio, found.places, found.waiting) == (0, 0, 0)
        same = like is None or (found.files <= like.files and found.tasks <= like.tasks)
        if (rests and same) or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def _sample(server: Server, pid: int, minutes: float, requests: int) -> Sample:
    headers = {"authorization": f"Bearer {server.keys['ops'].text}", "connection": "close"}
    text = httpx.get(f"{server.admin}/metrics", headers=headers, timeout=60).text

    def metric(name: str) -> float:
        found = re.search(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        assert found, f"{name} is not shown"  # noqa: S101
        return float(found[1])

    status = Path(f"/proc/{pid}/status").read_text()
    rss, threads = (
        int(re.findall(rf"^{name}:\s+(\d+)", status, re.MULTILINE)[0]) for name in ("VmRSS", "Threads")
    )
    held = {name: metric(full) for name, full in _HELD.items()}
    return Sample(
        round(minutes, 2),
        requests,
        round(rss / 1024, 1),
        threads=threads,
        kv_ratio=held.pop("kv_ratio"),
        **{name: int(value) for name, value in held.items()},
    )


def growth(samples: Sequence[Sample]) -> tuple[float, float]:
    """The slope of memory by least squares over the second half, and its standard error: MiB per hour."""
    half = samples[len(samples) // 2 :]
    hours, rss = np.array([[s.minutes / 60, s.rss_mib] for s in half]).T
    centred = hours - hours.mean()
    slope = float(centred @ rss / (centred @ centred))
    rest = rss - rss.mean() - slope * centred
    return slope, float(np.sqrt(rest @ rest / max(1, len(half) - 2) / (centred @ centred)))


def complaints(samples: Sequence[Sample], most_growth: float) -> list[str]:
    """What did not come back. The first sample, after the first round, is what the idle server holds."""
    first, last = samples[0], samples[-1]
    found = [
        f"{name}: {getattr(first, name)} after the first round, {getattr(last, name)} at the end"
        for name in _COMES_BACK
        if getattr(last, name) > getattr(first, name)
    ]
    slope, error = growth(samples)
    if slope - 2 * error > most_growth:
        found.append(
            f"memory grows by {slope:.0f} (+- {error:.0f}) MiB per hour; {most_growth:g} are allowed"
        )
    return found


def show(values: Sequence[object]) -> None:
    print("| " + " | ".join(f"{value!s:>8}" for value in values) + " |", flush=True)


async def soak(server: Server, pid: int, options: argparse.Namespace) -> tuple[list[Sample], Counter[str]]:
    load, samples = Load(server, options.clients, options.seed), list[Sample]()
    show([field.name for field in fields(Sample)])
    show(["---:"] * len(fields(Sample)))
    began = time.monotonic()
    while len(samples) < _FEWEST or time.monotonic() - began < options.minutes * 60:
        await load.run(options.round_s)
        minutes, requests = (time.monotonic() - began) / 60, sum(load.done.values())
        first = samples[0] if samples else None
        samples.append(await asyncio.to_thread(sample, server, pid, minutes, requests, first))
        show([getattr(samples[-1], field.name) for field in fields(Sample)])
    return samples, load.done


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--round-s", type=float, default=60, help="seconds of load between two samples")
    parser.add_argument("--most-growth", type=float, default=30, help="of memory, MiB per hour")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(
        f"Python {platform.python_version()}, {len(os.sched_getaffinity(0))} core(s), {options.clients} clients\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        with server.running() as process:
            samples, done = asyncio.run(soak(server, process.pid, options))
        told = server.log
    print()
    for name, count in sorted(done.items()):
        print(f"- {name}: {count}")
    slope, error = growth(samples)
    print(f"\nmemory, second half: {slope:+.1f} MiB per hour (standard error {error:.1f})")
    wrong = complaints(samples, options.most_growth)
    wrong += [f"{count} x {name}" for name, count in done.items() if name.startswith("unexpected")]
    if "Traceback" in told or process.returncode:
        wrong.append(f"the server ended with {process.returncode}, and its log has:\n{told[-2000:]}")
    for complaint in wrong:
        print(f"NOT CLEAN: {complaint}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
