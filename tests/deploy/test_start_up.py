"""The image from start to end, as the Deployment runs it, but without Docker: see container.py."""

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.deploy.container import USER, Container, build, skip_unless_permitted, started
from tests.deploy.tools import DEPLOY, documents, run
from tests.waiting import until

API, ADMIN = "http://127.0.0.1:8000", "http://127.0.0.1:9100"
POLICY = DEPLOY / "policies" / "demo" / "policy.yaml"
DEPLOYMENT = DEPLOY / "kubernetes" / "base" / "deployment.yaml"


def pod() -> dict[str, Any]:
    return documents(DEPLOYMENT)[0]["spec"]["template"]["spec"]["containers"][0]


def mounted(folder: Path, **files: str) -> None:
    """Fill a folder as the kubelet does: what is in it changes by swapping one symlink."""
    version = folder / f"..version_{len(list(folder.iterdir()))}"
    version.mkdir()
    for stem, text in files.items():
        file = version / stem.replace("_yaml", ".yaml")
        file.write_text(text)
        file.chmod(0o440)
        os.chown(file, 0, USER)
        if not (folder / file.name).is_symlink():
            (folder / file.name).symlink_to(f"..data/{file.name}")
    (folder / "..new").symlink_to(version.name)
    (folder / "..new").rename(folder / "..data")


@dataclass
class Running:
    container: Container
    folder: Path
    keys: dict[str, str]  # by scope
    manager: socket.socket  # as systemd's

    def ask(self, url: str, scope: str, **body: Any) -> httpx.Response:
        method = "POST" if body else "GET"
        headers = {"authorization": f"Bearer {self.keys[scope]}"} if scope else {}
        return self.container.inside(
            httpx.request, method, url, headers=headers, json=body or None, timeout=120, trust_env=False
        )

    def chat(self, text: str = "hello") -> httpx.Response:
        messages = [{"role": "user", "content": text}]
        return self.ask(
            f"{API}/v1/chat/completions", "infer", model="interlock-demo", messages=messages, max_tokens=8
        )

    def answers(self, url: str) -> bool:
        try:
            return self.ask(url, "").is_success
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    skip_unless_permitted()
    folder = tmp_path_factory.mktemp("container")
    build(folder / "image")
    for name in ("policies", "keys", "admin-key", "state", "tmp"):
        (folder / name).mkdir()
    os.chown(folder / "state", USER, USER)
    (folder / "tmp").chmod(0o1777)
    keys = {}
    for scope in ("infer", "admin"):
        create = (Path(sys.executable).parent / "interlock", "keys", "create", "--scope", scope)
        said = run(*create, "--tenant", f"of-{scope}", "--new-tenant", "--file", folder / "keys.yaml")
        keys[scope] = said.split()[0]
    mounted(folder / "policies", policy_yaml=POLICY.read_text())
    mounted(folder / "keys", keys_yaml=(folder / "keys.yaml").read_text())
    mounted(folder / "admin-key", key=keys["admin"] + "\n")
    mounts = {
        mount["mountPath"]: (folder / mount["name"], "ro" if mount.get("readOnly") else "rw")
        for mount in pod()["volumeMounts"]
    }
    environment = {item["name"]: item["value"] for item in pod()["env"] if "value" in item}
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(folder / "tmp" / "notify"))
    manager.settimeout(60)
    (folder / "tmp" / "notify").chmod(0o777)
    environment |= {"NOTIFY_SOCKET": "/tmp/notify"}  # noqa: S108
    environment |= {"OMP_NUM_THREADS": "1", "INTERLOCK__DRAIN_DELAY_S": "0"}  # no balancer has to notice
    with manager, started(folder, folder / "image", mounts, environment) as container:
        live = Running(container, folder, keys, manager)
        until(lambda: live.answers(f"{ADMIN}/readyz") or not Path(f"/proc/{container.pid}").exists(), 300)
        assert live.answers(f"{ADMIN}/readyz"), container.said
        yield live


def test_the_server_has_no_rights(running):
    container = running.container
    assert container.status("Uid").split() == [str(USER)] * 4
    assert container.status("NSpid").split()[-1] == "1"
    assert container.status("NoNewPrivs") == "1"
    for rights in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"):
        assert int(container.status(rights), 16) == 0


def test_what_runs_is_what_the_dockerfile_installed(running):
    where = "import guard, monitors, server; print(guard.__file__, monitors.__file__, server.__file__)"
    found = running.container.execute("python", "-c", where).stdout.split()
    assert len(found) == 3
    assert all(file.startswith("/opt/interlock/") for file in found)


def test_there_is_no_network_but_loopback(running):
    lines = Path(f"/proc/{running.container.pid}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in lines] == ["lo"]


def test_nothing_can_be_written_but_the_state_and_tmp(running):
    for folder in (
        "/",
        "/etc/interlock/policies",
        "/etc/interlock/keys",
        "/opt/interlock",
        "/usr/bin",
        "/dev",
    ):
        assert running.container.execute("touch", f"{folder}/file").returncode != 0, folder
    for folder in ("/var/lib/interlock", "/tmp"):  # noqa: S108
        assert running.container.execute("touch", f"{folder}/file").returncode == 0, folder


def test_a_request_with_a_key_is_answered_and_one_without_is_refused(running):
    reply = running.chat("What is the capital of France?")
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"]
    assert running.ask(f"{API}/v1/models", "").status_code == 401


def test_a_reply_that_must_be_json_is_held_to_it(running):
    """Its grammar is tried in a process of its own, which has to start here, too."""
    reply = running.ask(
        f"{API}/v1/chat/completions",
        "infer",
        model="interlock-demo",
        messages=[{"role": "user", "content": "hello"}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "n", "strict": True, "schema": {"type": "boolean"}},
        },
    )
    assert reply.json()["choices"][0]["message"]["content"].strip() in {"true", "false"}, reply.text


def test_the_probes_of_the_deployment_are_answered_without_a_key(running):
    ports = {port["name"]: port["containerPort"] for port in pod()["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = pod()[probe]["httpGet"]
        assert running.ask(f"http://127.0.0.1:{ports[asked['port']]}{asked['path']}", "").status_code == 200


def test_the_image_s_own_health_check_passes(running):
    checked = running.container.execute("interlock", "health")
    assert (checked.returncode, checked.stdout) == (0, "well\n"), checked.stderr


def test_a_policy_that_the_kubelet_swaps_is_taken_up(running):
    def in_force():
        return running.ask(f"{ADMIN}/-/policy", "admin").json()["policy"]

    before = in_force()
    changed = POLICY.read_text().replace('version: "', 'version: "swapped-')
    mounted(running.folder / "policies", policy_yaml=changed)
    until(lambda: in_force() != before)
    assert "swapped-" in in_force()
    assert running.chat().status_code == 200


def test_it_drains_on_the_deployment_s_pre_stop_and_ends_on_sigterm(running):
    """Last: nothing runs afterwards. Decisions were recorded in the volume, in a chain that holds."""
    drained = running.container.execute(*pod()["lifecycle"]["preStop"]["exec"]["command"])
    assert (drained.returncode, drained.stderr) == (0, ""), drained.stderr
    assert not running.answers(f"{ADMIN}/readyz")
    assert running.chat().json()["error"]["code"] == "draining"
    assert running.manager.recv(100) == b"READY=1"
    assert running.container.stop() == 0, running.container.said
    assert running.manager.recv(100) == b"STOPPING=1"
    log = running.folder / "state" / "decisions.jsonl"
    assert {orjson.loads(line)["tenant"] for line in log.read_bytes().splitlines()} == {"of-infer"}
    run(Path(sys.executable).parent / "interlock", "audit", "verify", log)
