"""`interlock doctor` on what is right, on what is broken, and on servers that run."""

import json
import shutil
import socket
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from typer.testing import CliRunner

from server.cli import app as cli
from server.config import DEMO, read_settings
from server.doctor import check_server
from server.findings import Level
from tests.e2e.lifecycle_server import POLICY, served

_NOBODY = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _free_ports(monkeypatch):
    monkeypatch.setenv("INTERLOCK__PORT", "0")
    monkeypatch.setenv("INTERLOCK__ADMIN_PORT", "0")


def doctor(*options, url=_NOBODY):
    ran = CliRunner().invoke(cli, ["doctor", "--format", "json", "--url", url, *map(str, options)])
    told = json.loads(ran.output)
    assert ran.exit_code == told["exit_code"]
    return ran.exit_code, {finding["check"]: finding for finding in told["findings"]}


def problems(findings):
    return {check for check, finding in findings.items() if finding["level"] == "problem"}


def test_the_demo_has_no_problem(tmp_path):
    code, found = doctor("--audit", tmp_path / "new" / "log.jsonl", "--device", "cpu")
    assert code < 2
    assert found["model"]["level"] == found["policy"]["level"] == found["audit"]["level"] == "ok"
    assert "5 monitors for it" in found["model"]["found"]
    assert found["server"]["level"] == "none"
    assert not (tmp_path / "new").exists()


def test_text_ends_with_a_summary_and_says_what_to_do(tmp_path):
    ran = CliRunner().invoke(cli, ["doctor", "--url", _NOBODY, "--policy", str(tmp_path / "none.yaml")])
    assert ran.exit_code == 2
    assert "problem  policy" in ran.output
    assert "-> interlock policy check" in ran.output
    assert ran.output.splitlines()[-1].startswith("1 problems, ")


def test_each_broken_part_is_told_by_its_name(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "keys.yaml").write_text("secret-of-somebody: [")
    code, found = doctor(
        *("--audit", tmp_path / "file" / "log.jsonl"),
        *("--keys", tmp_path / "keys.yaml"),
        *("--device", "cuda:99"),
    )
    assert code == 2
    assert problems(found) == {"audit", "keys", "device"}
    assert "secret-of-somebody" not in json.dumps(found)


def test_monitors_of_another_model_are_a_problem(tmp_path):
    shutil.copytree(DEMO / "monitors", tmp_path / "monitors")
    file = tmp_path / "monitors" / "harm" / "monitor.json"
    artifact = json.loads(file.read_text())
    artifact["model"]["fingerprint"] = "0" * 64
    file.write_text(json.dumps(artifact))
    _, found = doctor("--monitors", tmp_path / "monitors")
    assert found["model"]["level"] == "problem"
    assert "harm" in found["model"]["found"]


def test_a_folder_that_is_no_model_is_a_problem(tmp_path):
    _, found = doctor("--model", tmp_path, "--policy", DEMO.parent / "policies" / "demo")
    assert found["model"]["level"] == "problem"


def test_a_cache_that_does_not_fit_is_a_problem(monkeypatch):
    monkeypatch.setenv("INTERLOCK__KV_MEMORY", "1MiB")
    monkeypatch.setenv("INTERLOCK__MAX_BATCH", "512")
    _, found = doctor()
    assert found["memory"]["level"] == "problem"
    assert "KV cache" in found["memory"]["found"]


def test_a_port_that_somebody_has_is_a_problem(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setenv("INTERLOCK__PORT", str(other.getsockname()[1]))
        _, found = doctor()
    assert found["ports"]["level"] == "problem"


def test_a_misspelt_setting_is_a_problem_and_its_value_is_not_shown(monkeypatch):
    monkeypatch.setenv("INTERLOCK__AUDIT_HMAC_KEE", "hidden-value")
    code, found = doctor()
    assert code == 2
    assert "INTERLOCK__AUDIT_HMAC_KEY" in found["settings"]["found"]
    assert "hidden-value" not in json.dumps(found)


def test_a_running_server_is_asked_and_its_policy_compared(tmp_path):
    policy = tmp_path / "mine.yaml"
    policy.write_text(POLICY % 1)
    (tmp_path / "model").symlink_to(DEMO / "model")  # not the demo's by name: no monitors
    with served(tmp_path) as live:
        _, found = doctor("--model", tmp_path / "model", "--policy", policy, url=live.admin)
        assert {found[name]["level"] for name in ("server", "metrics", "in force", "clock")} == {"ok"}
        policy.write_text(POLICY.replace("> 0.5", "> 0.6") % 2)
        _, other = doctor("--policy", policy, url=live.admin)
        assert other["in force"]["level"] == "warning"


def test_a_server_that_is_loading_is_not_ready(tmp_path):
    with served(tmp_path, loaded=False) as live:
        _, found = doctor(url=live.admin)
    assert found["server"]["level"] == "problem"
    assert "it is being loaded" in found["server"]["found"]


def test_a_clock_that_is_wrong_and_a_key_that_is_missing_are_told():
    then = (datetime.now(UTC) - timedelta(hours=1)).strftime("%a, %d %b %Y %H:%M:%S GMT")

    def answer(request):
        if request.url.path == "/readyz":
            return httpx.Response(200, json={"checks": []}, headers={"date": then})
        return httpx.Response(401)

    with httpx.Client(base_url=_NOBODY, transport=httpx.MockTransport(answer)) as client:
        found = {finding.check: finding.level for finding in check_server(read_settings(), client)}
    assert found == {"server": Level.OK, **dict.fromkeys(("metrics", "in force", "clock"), Level.WARNING)}
