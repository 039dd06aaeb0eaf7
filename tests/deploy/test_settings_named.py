"""What is written about settings, ports and commands is so."""

import re
import subprocess
import sys
from difflib import get_close_matches

import pytest
from typer.main import get_command

from server.cli import app as cli
from server.config import ServerConfig
from tests.deploy.tools import ROOT

TEXT = {".md", ".yaml", ".yml", ".service", ".env", ".cfg", ".conf", ".txt", ""}
FILES = sorted(
    path
    for folder in ("deploy", "docs", ".")
    for path in (ROOT / folder).glob("*.md" if folder == "." else "**/*")
    if path.is_file()
    and (path.suffix in TEXT or "Dockerfile" in path.name)
    and "deploy/demo/" not in str(path)
)
KNOWN = {f"INTERLOCK__{name}".upper() for name in ServerConfig.model_fields}


def test_there_is_something_to_look_at():
    assert {"Dockerfile", "deployment.yaml", "keys.md", "README.md", "interlock.service"} <= {
        path.name for path in FILES
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_setting_that_is_named_exists(path):
    # INTERLOCK__DRAIN_… and INTERLOCK__<NAME> stand for several
    named = set(re.findall(r"INTERLOCK__[A-Z0-9_]*[A-Z0-9]\b(?![_…])", path.read_text()))
    unknown = {name: get_close_matches(name, KNOWN, 1) for name in named - KNOWN - {"INTERLOCK__NAME"}}
    assert not unknown


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_option_of_a_command_that_is_shown_exists(path):
    """In lines that begin with `interlock`, or a prompt and `interlock`."""
    commands = get_command(cli).commands
    for line in re.findall(r"^\s*(?:\$ |- `)?interlock ([a-z].*)$", path.read_text(), re.MULTILINE):
        words = re.split(r"\s+", line.split("`")[0].split("#")[0].strip())
        command = commands.get(words[0].strip(".,:"))
        if command is None:
            continue  # a sentence
        for word in words[1:]:
            command = getattr(command, "commands", {}).get(word.split("|")[0], command)  # check|test
        known = {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        shown = {word.split("=")[0].rstrip(".,:;)") for word in words if word.startswith("--")}
        assert shown <= known | {"--help"}, f"interlock {line}"


def test_commands_start_without_torch():
    """A health check runs one every few seconds."""
    check = "import sys, server.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0  # noqa: S603
