"""Keys and memory as an operator meets them: the real commands, a real server, real signals."""

import os
import signal
import subprocess
import sys
import time

import httpx
import openai
import pytest

from tests.e2e.test_command_line import _free_port, _wait_for, interlock, model_folder, policy_file, serve

__all__ = ["model_folder", "policy_file"]  # fixtures
ALLOW = "apiVersion: interlock/v1\nkind: Policy\nmetadata: {name: p, version: '1'}\n"


def test_a_key_file_that_is_wrong_stops_the_start_and_shows_no_secret(model_folder, policy_file, tmp_path):
    file = tmp_path / "keys.yaml"
    key = interlock("keys", "create", "--tenant", "acme", "--file", file).stdout.strip()
    file.write_text(file.read_text().replace("tenant: acme", f"tenant: acme\n  secret: {key}"))
    said = serve(model_folder, policy_file, "--keys", file)
    assert said.returncode == 2
    assert f"{file}:" in said.stderr
    assert "unknown key keys.0.secret" in said.stderr
    assert key not in said.stderr
    assert "Traceback" not in said.stderr


def test_a_cache_that_does_not_fit_stops_the_start(model_folder, policy_file, monkeypatch):
    policy_file.write_text(ALLOW)
    monkeypatch.setenv("INTERLOCK__KV_MEMORY", "0.1MiB")
    said = serve(model_folder, policy_file, "--max-batch", 16, "--max-context", 128)
    assert said.returncode == 2
    assert "the KV cache would need" in said.stderr
    assert "INTERLOCK__KV_MEMORY" in said.stderr
    assert "Traceback" not in said.stderr


def test_a_server_with_keys_from_creation_to_revocation(model_folder, policy_file, tmp_path):
    policy_file.write_text(ALLOW)
    file, port, admin = tmp_path / "keys.yaml", _free_port(), _free_port()
    key = interlock("keys", "create", "--tenant", "acme", "--file", file).stdout.strip()
    options = ["--model", model_folder, "--policy", policy_file, "--keys", file, "--no-audit"]
    options += ["--port", port, "--admin-port", admin]
    command = [sys.executable, "-c", "from server.cli import main; main()", "serve", *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "INTERLOCK__RELOAD_POLL_S": "0"}
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server,  # noqa: S603
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0) as client,
    ):
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", server)
            assert client.models.list().data
            with pytest.raises(openai.AuthenticationError):
                client.with_options(api_key="sk-other").models.list()
            assert httpx.get(f"http://127.0.0.1:{admin}/metrics").status_code == 401
            assert interlock("keys", "revoke", key.split("_")[1], "--file", file).returncode == 0
            server.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + 60
            with pytest.raises(openai.AuthenticationError):  # noqa: PT012
                while time.monotonic() < deadline:
                    client.models.list()
                    time.sleep(0.1)
        finally:
            server.send_signal(signal.SIGTERM)
            said = server.stderr.read()
    assert server.returncode == 0
    assert "keys      1 of 1 tenants" in said
    assert "KV cache  " in said
    assert key.split("_")[2] not in said
