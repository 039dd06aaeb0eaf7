"""The compose file: valid, at one with the image, and with everything that is mounted there."""

import os
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from server.config import ServerConfig
from tests.deploy.dockerfile import stages
from tests.deploy.tools import DEPLOY, run, tool

FILE = DEPLOY / "compose" / "compose.yaml"
COMPOSE: dict[str, Any] = YAML(typ="safe", pure=True).load(FILE)
SERVICES = COMPOSE["services"]
IMAGE = stages(DEPLOY / "docker" / "Dockerfile")[-1]
each_service = pytest.mark.parametrize("name", SERVICES)


def bound(service: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What, where, how, of its volumes."""
    return [(*volume.split(":"), "rw")[:3] for volume in service["volumes"]]


def test_the_file_is_valid_by_the_compose_specification():
    check = tool("check-jsonschema", "pip install check-jsonschema")
    run(check, "--builtin-schema", "vendor.compose-spec", FILE)


def test_docker_reads_it():
    docker = tool("docker", "https://docs.docker.com/engine/install/")
    try:
        run(docker, "compose", "version")
    except AssertionError:
        pytest.skip("docker has no compose here")
    run(docker, "compose", "-f", FILE, "config", "--quiet", env=os.environ | {"GRAFANA_ADMIN_PASSWORD": "x"})


@each_service
def test_what_is_mounted_is_there_and_is_a_folder(name):
    """Of a file that is mounted by itself, edits are not seen inside; one that is not there is made a folder."""
    for what, _, how in bound(SERVICES[name]):
        if what.startswith("."):
            assert (FILE.parent / what).is_dir()
            assert how == "ro"
        else:
            assert what in COMPOSE["volumes"]


@each_service
def test_no_container_has_more_rights_than_it_needs(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@each_service
def test_ports_are_published_on_this_machine_only_and_the_admin_port_not_at_all(name):
    for port in SERVICES[name].get("ports", ()):
        assert port.startswith("127.0.0.1:")
        assert not port.endswith(f":{IMAGE.environment['INTERLOCK__ADMIN_PORT']}")


@pytest.mark.parametrize("name", ["prometheus", "alertmanager", "grafana"])
def test_images_of_others_are_pinned_by_digest(name):
    assert "@sha256:" in SERVICES[name]["image"]


def test_the_server_reads_what_is_mounted(monkeypatch):
    service = SERVICES["interlock"]
    for variable, value in (IMAGE.environment | service["environment"]).items():
        if variable.startswith("INTERLOCK__"):
            monkeypatch.setenv(variable, value)
    config = ServerConfig()
    where = {Path(place) for _, place, _ in bound(service)}
    assert config.policy in where
    assert config.keys.parent in where
    assert config.audit.parent in where
    assert f"127.0.0.1:8000:{config.port}" in service["ports"]
    assert (
        int(service["stop_grace_period"].removesuffix("s"))
        > config.drain_delay_s + config.drain_timeout_s + 10
    )


def test_keys_are_made_where_the_server_reads_them():
    keys = SERVICES["keys"]
    assert keys["image"] == SERVICES["interlock"]["image"]
    assert keys["entrypoint"] == ["interlock", "keys"]
    assert {what: where for what, where, _ in bound(keys)}["keys"] == "/etc/interlock/keys"
    made = next(line for line in IMAGE.all("RUN") if "install -d" in line)
    assert (
        "-o 10001 -g 10001 -m 0750 /etc/interlock/keys" in made
    )  # a new volume takes its owner from the image
