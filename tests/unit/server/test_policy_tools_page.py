"""The commands of docs/policy-tools.md, run as the page shows them."""

import re
import shlex
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from guard.audit import decision_record
from guard.policy import load_policy
from guard.replay import replay
from guard.types import Phase, Subject
from server.policy_cli import policy_app

PAGE = (Path(__file__).parents[3] / "docs" / "policy-tools.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```yaml\n(.*?)```", PAGE, re.DOTALL))
BLOCKS = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
TRAFFIC = [([0.1] * 9, [0.2] * 30)] * 40 + [
    ([0.1, 0.88], [0.2] * 12),
    ([0.7], [0.1] * 8),
    ([0.2, 0.97], []),
    ([0.1], [0.1, 0.65, 0.1, 0.69, 0.62, 0.66, 0.1]),
    ([0.3], [0.8, 0.9, 0.1, 0.8, 0.75]),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text, encoding="utf-8")
    grey = re.search(r"  - id: grey\n.*?(?=tests:)", FILES["policy.yaml"], re.DOTALL)[0]
    candidate = FILES["policy.yaml"].replace(grey, "").replace("> 0.90", "> 0.85").replace("> 0.7,", "> 0.6,")
    Path("candidate.yaml").write_text(candidate, encoding="utf-8")
    write_log(Path("decisions.jsonl"))


def write_log(path):
    policy, now = load_policy("policy.yaml"), datetime(2026, 11, 22, tzinfo=UTC)
    with path.open("wb") as log:
        for i, (harm, deception) in enumerate(TRAFFIC):
            series = {Phase.PROMPT: {"harm": harm}, Phase.RESPONSE: {"deception": deception}}
            outcome = replay(policy, Subject(), {"harm": harm}, {"deception": deception}, now)
            usage = {"prompt_tokens": len(harm), "completion_tokens": len(deception)}
            record = decision_record(
                decision_id=f"5f0c{i:02}", ts=now.isoformat(), outcome=outcome, subject=Subject(), policy=policy,
                scores=series, usage=usage,
            )  # fmt: skip
            log.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        log.write(b'{"v":1,"ts":"2026-11-22T00:0')


def shown(command):
    """What a terminal shows."""
    program, *args = shlex.split(command)
    if program == "cat":
        return Path(args[0]).read_text(encoding="utf-8")
    said = CliRunner().invoke(policy_app, args[1:])
    assert args[0] == "policy"
    return said.output + (f"[{said.exit_code}]\n" if said.exit_code else "")


def played(block):
    """The commands of a block, each with what it shows."""
    return "".join(
        f"$ {command}\n{shown(command)}" for command in re.findall(r"^\$ (.*)", block, re.MULTILINE)
    )


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("block", BLOCKS)
def test_the_page_shows_what_the_tools_say(block):
    assert played(block) == block


def test_the_page_shows_every_command():
    commands = {command.name or command.callback.__name__ for command in policy_app.registered_commands}
    assert commands == set(re.findall(r"^## (\w+)", PAGE, re.MULTILINE))
