"""A real Prometheus beside a real server."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.waiting import until

PROMETHEUS = shutil.which("prometheus")
_CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: interlock
    authorization: {{credentials: "{key}"}}
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def prometheus(folder: Path, port: int, rules: Path, key: str = "none") -> Iterator[httpx.Client]:
    """Scrapes `/metrics` on a port each second. What is yielded asks it."""
    folder.mkdir(parents=True, exist_ok=True)
    config, own = folder / "prometheus.yml", free_port()
    config.write_text(_CONFIG.format(rules=rules, port=port, key=key))
    options = [
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{own}",
    ]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen([str(PROMETHEUS), *options], stderr=log, stdout=log) as process,  # noqa: S603  # ours
        httpx.Client(base_url=f"http://127.0.0.1:{own}", timeout=60) as client,
    ):
        try:
            until(lambda: is_ready(client, "/-/ready"))
            yield client
        finally:
            process.terminate()


@contextlib.contextmanager
def interlock(folder: Path, **settings: object) -> Iterator[tuple[int, int]]:
    """`interlock serve` with the demo's model: its serving port and its admin port."""
    ports = free_port(), free_port()
    given = {"port": ports[0], "admin_port": ports[1], "audit": folder / "decisions.jsonl", **settings}
    environment = {f"INTERLOCK__{name.upper()}": str(value) for name, value in given.items()}
    command = [sys.executable, "-c", "from server.cli import main; main()", "serve"]
    with (
        (folder / "server.log").open("w") as log,
        subprocess.Popen(  # noqa: S603  # ours
            command, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}
        ) as process,
    ):
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{ports[0]}", timeout=60) as client:
                until(lambda: process.poll() is not None or is_ready(client, "/readyz"), 300)
            assert process.poll() is None, (folder / "server.log").read_text()
            yield ports
        finally:
            process.terminate()


def is_ready(client: httpx.Client, path: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return client.get(path).status_code == httpx.codes.OK
    return False


def alerts(client: httpx.Client) -> dict[str, Mapping[str, Any]]:
    """The firing ones, by name."""
    found = client.get("/api/v1/alerts").raise_for_status().json()["data"]["alerts"]
    return {alert["labels"]["alertname"]: alert for alert in found if alert["state"] == "firing"}
