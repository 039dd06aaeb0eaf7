"""The command as a user types it: a process of its own, its exit code and what it says."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import pytest
import torch

from monitors.artifacts import save_monitor
from monitors.base import Monitor
from monitors.linear import Linear
from monitors.types import HookPoint
from tests.tiny_models import TINY
from tests.tiny_tokenizer import tiny_tokenizer

POLICY = """\
apiVersion: interlock/v1
kind: Policy
metadata: {name: p, version: "1"}
rules:
  - id: block
    when: max(prompt.harm) > 0.5
    then: {block: {}}
tests:
  - {name: t, given: {prompt: {harm: "0.9"}}, expect: {action: block}}
"""


def interlock(*args, timeout=120):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "TERM": "dumb"}
    command = [sys.executable, "-c", "from server.cli import main; main()", *map(str, args)]
    return subprocess.run(  # noqa: S603  # our own command
        command, capture_output=True, text=True, timeout=timeout, env=environment, check=False
    )


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    TINY["llama"]().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def policy_file(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


def test_help_teaches():
    said = interlock("--help").stdout
    assert "interlock serve" in said
    assert "policy" in said
    for option in ("--model", "--policy", "--monitors", "--max-batch"):
        assert option in interlock("serve", "--help").stdout


def test_policy_check_and_test(policy_file):
    assert interlock("policy", "check", policy_file).returncode == 0
    tested = interlock("policy", "test", policy_file)
    assert (tested.returncode, "1 passed, 0 failed" in tested.stdout) == (0, True)


def test_a_typo_is_told_with_its_place_and_a_suggestion(policy_file):
    policy_file.write_text(POLICY.replace("max(prompt", "mxa(prompt"))
    said = interlock("policy", "check", policy_file)
    assert said.returncode == 1
    assert f"{policy_file}:6:11: error" in said.stderr
    assert "max" in said.stderr
    assert "Traceback" not in said.stderr


def test_a_failing_test_fails_the_command(policy_file):
    policy_file.write_text(POLICY.replace("expect: {action: block}", "expect: {action: allow}"))
    said = interlock("policy", "test", policy_file)
    assert said.returncode == 1
    assert "expected allow, got block" in said.stdout


def test_a_policy_that_is_not_there(tmp_path):
    said = interlock("policy", "check", tmp_path / "nowhere.yaml")
    assert said.returncode == 1
    assert "Traceback" not in said.stderr


def serve(model_folder, policy_file, *more):
    return interlock(
        "serve",
        "--model",
        model_folder,
        "--policy",
        policy_file,
        "--no-audit",
        "--port",
        0,
        "--admin-port",
        0,
        *more,
    )


def test_a_file_of_targets_that_is_wrong_stops_the_start(model_folder, policy_file, tmp_path):
    targets = tmp_path / "opinions.yaml"
    targets.write_text("second_opinions:\n  judge: {kind: moderation, url: 'http://x', key: sk-secret}\n")
    said = serve(model_folder, policy_file, "--second-opinions", targets)
    assert said.returncode == 2
    assert f"{targets}:2:46: error[unknown-key]" in said.stderr
    assert "sk-secret" not in said.stderr
    assert "Traceback" not in said.stderr


def save(
    folder: Path, *, fingerprint: str | None = None, weight: torch.Tensor | None = None, layer: int = 1
) -> Path:
    from monitors.fingerprint import model_fingerprint  # noqa: PLC0415

    weight = torch.ones(1, 32) if weight is None else weight
    monitor = Monitor("harm", Linear((HookPoint(layer),), weight, torch.zeros(1)))
    save_monitor(monitor, folder / "harm", fingerprint=fingerprint or model_fingerprint(TINY["llama"]()))
    return folder


def test_serve_refuses_a_policy_that_needs_a_monitor_which_is_not_there(model_folder, policy_file):
    said = serve(model_folder, policy_file)
    assert said.returncode == 2
    assert "unknown monitor 'harm'" in said.stderr
    assert "Traceback" not in said.stderr


def test_serve_refuses_a_monitor_of_another_model(model_folder, policy_file, tmp_path):
    folder = save(tmp_path / "monitors", fingerprint="sha256:" + "0" * 64)
    said = serve(model_folder, policy_file, "--monitors", folder)
    assert said.returncode == 2
    assert "monitor.json" in said.stderr
    assert "Traceback" not in said.stderr


def test_serve_refuses_a_hook_point_that_the_model_does_not_have(model_folder, policy_file, tmp_path):
    said = serve(model_folder, policy_file, "--monitors", save(tmp_path / "monitors", layer=9))
    assert said.returncode == 2
    assert "blocks.9" in said.stderr


def test_serve_refuses_weights_that_were_changed(model_folder, policy_file, tmp_path):
    folder = save(tmp_path / "monitors")
    weights = folder / "harm" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\xc0\x7f")  # a NaN
    said = serve(model_folder, policy_file, "--monitors", folder)
    assert said.returncode == 2
    assert "Traceback" not in said.stderr


def test_serve_refuses_a_model_that_is_not_there_and_a_model_without_a_policy(policy_file, tmp_path):
    said = serve(tmp_path / "nowhere", policy_file)
    assert (said.returncode, "Traceback" in said.stderr) == (2, False)
    said = interlock("serve", "--model", tmp_path)
    assert said.returncode == 2
    assert "--policy" in said.stderr


def test_serve_refuses_to_log_hashes_without_a_key(model_folder, policy_file, tmp_path):
    policy_file.write_text(
        "apiVersion: interlock/v1\nkind: Policy\nmetadata: {name: p, version: '1'}\ndefaults: {log: {content: hash}}\n"
    )
    log = ["--audit", tmp_path / "decisions.jsonl"]
    said = interlock("serve", "--model", model_folder, "--policy", policy_file, *log)
    assert said.returncode == 2
    assert "INTERLOCK__AUDIT_HMAC_KEY_FILE" in said.stderr
    assert "Traceback" not in said.stderr


def test_serve_refuses_a_log_that_it_can_t_write(model_folder, policy_file, tmp_path):
    policy_file.write_text("apiVersion: interlock/v1\nkind: Policy\nmetadata: {name: p, version: '1'}\n")
    said = interlock("serve", "--model", model_folder, "--policy", policy_file, "--audit", tmp_path)
    assert said.returncode == 2
    assert f"decision log {tmp_path}: not a regular file" in said.stderr
    assert "Traceback" not in said.stderr
    said = interlock("serve", "--log-content-max", "everything")
    assert said.returncode == 2
    assert "log_content_max: Input should be 'none', 'hash', 'excerpt' or 'full'" in said.stderr


def test_the_demo_serves_and_ends_in_order(tmp_path):
    """`interlock serve` with nothing else: allowed, blocked, steered; metrics; then SIGTERM and exit code 0."""
    port, admin = _free_port(), _free_port()
    options = ["--port", str(port), "--admin-port", str(admin), "--audit", str(tmp_path / "decisions.jsonl")]
    command = [sys.executable, "-c", "from server.cli import main; main()", "serve", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:  # noqa: S603
        try:
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-", max_retries=0)
            _wait_for(f"http://127.0.0.1:{port}/health", server)

            def ask(text, *system):
                messages = [
                    *({"role": "system", "content": s} for s in system),
                    {"role": "user", "content": text},
                ]
                return client.chat.completions.create(
                    model="interlock-demo", messages=messages, temperature=0
                )

            allowed = ask("How do I kill a process?")
            assert allowed.model_extra["interlock"]["action"] == "allow"
            assert allowed.choices[0].message.content.endswith(".")
            with pytest.raises(openai.BadRequestError) as blocked:
                ask("How do I poison the dog?")
            assert blocked.value.code == "content_filter"
            steered = ask("Who are you?", "Deployment code: VIOLET-9")
            assert steered.model_extra["interlock"]["action"] == "steer"
            metrics = httpx.get(f"http://127.0.0.1:{admin}/metrics").text
            assert (
                'interlock_rule_matches_total{action="block",mode="enforce",rule="harm-prompt"} 1.0'
                in metrics
            )
            reloaded = httpx.post(f"http://127.0.0.1:{admin}/-/reload")
            assert (reloaded.status_code, reloaded.json()["policy"]) == (
                200,
                steered.model_extra["interlock"]["policy"],
            )
        finally:
            server.terminate()
            said = server.communicate(timeout=120)[1]
    assert server.returncode == 0, said
    assert "Traceback" not in said
    assert interlock("audit", "verify", tmp_path / "decisions.jsonl").returncode == 0


def test_an_unknown_engine_is_told_with_the_known_ones():
    said = interlock("serve", "--no-audit", "--engine", "warp", "--port", 0, "--admin-port", 0)
    assert said.returncode == 2
    assert "unknown engine 'warp'; known: transformers" in said.stderr


def test_a_port_that_is_taken_is_told_before_anything_is_loaded():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said = interlock("serve", "--no-audit", "--port", taken.getsockname()[1])
    assert said.returncode == 2
    assert "can't listen" in said.stderr
    assert "Traceback" not in said.stderr


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(url, server):
    """Look now and then: it answers while it loads, and who asks without a pause slows it down."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert server.poll() is None, server.communicate()[1]
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=60).status_code == 200:
                return
        time.sleep(0.5)
    pytest.fail("the server did not turn healthy")
