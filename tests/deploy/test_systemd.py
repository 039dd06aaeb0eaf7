"""The systemd unit: systemd accepts it, finds it hardened, and it is at one with the server."""

import re
from pathlib import Path

import pytest

from server.config import ServerConfig
from tests.deploy.tools import DEPLOY, run, tool

UNIT = DEPLOY / "systemd" / "interlock.service"
_SYSTEMD = "Debian's systemd"
_MOST_EXPOSURE = 20  # tenths; systemd calls less than 2 "OK"


def said(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


@pytest.fixture
def here(tmp_path):
    """The unit as this machine could run it: with a program and a user that exist."""
    text = UNIT.read_text().replace("/opt/interlock/bin/interlock", "/bin/true")
    for name in ("User", "Group", "EnvironmentFile"):
        text = re.sub(rf"^{name}=.*\n", "", text, flags=re.MULTILINE)
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace("[Service]\n", "[Service]\nDynamicUser=yes\n"))
    return unit


def test_systemd_accepts_the_unit(here):
    assert run(tool("systemd-analyze", _SYSTEMD), "verify", "--man=no", here) == ""


def test_systemd_finds_little_exposed(here):
    analyze = tool("systemd-analyze", _SYSTEMD)
    run(analyze, "security", "--no-pager", "--offline=true", f"--threshold={_MOST_EXPOSURE}", here)


def test_it_starts_the_server_and_tells_systemd_when_it_is_there():
    assert said("ExecStart") == ["/opt/interlock/bin/interlock serve"]
    assert said("Type") == ["notify"]
    assert said("ExecReload") == ["/bin/kill -HUP $MAINPID"]


def test_its_settings_are_settings_and_what_is_written_is_its_state(monkeypatch):
    for line in said("Environment"):
        for part in line.split():
            name, _, value = part.partition("=")
            monkeypatch.setenv(name, value)
    config = ServerConfig()
    assert said("StateDirectory") == ["interlock"]
    for written in (config.audit, config.last_good):
        assert Path("/var/lib/interlock") in written.parents


def test_the_server_has_time_to_drain_and_wrong_settings_are_not_tried_again():
    defaults = {
        name: ServerConfig.model_fields[name].default for name in ("drain_delay_s", "drain_timeout_s")
    }
    assert int(said("TimeoutStopSec")[0].removesuffix("s")) > sum(defaults.values()) + 10
    assert said("RestartPreventExitStatus") == ["2"]
    assert said("KillMode") == ["mixed"]  # the server ends its children itself
