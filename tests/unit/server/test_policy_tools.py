"""`interlock policy …`: what each tool says in each format, its exit code, and that nothing ends in a traceback."""

import json
import os
import re
import stat
import subprocess
import sys
from datetime import datetime

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from guard.audit import decision_record
from guard.errors import Problem
from guard.policy import load_policy, policy_from_text
from guard.replay import replay
from guard.types import Phase, Subject
from server.policy_cli import policy_app
from server.tools.log_lines import log_lines
from server.tools.report import Format, Report, print_report

POLICY = """\
apiVersion: interlock/v1
kind: Policy
metadata: {name: p, version: "1"}
defaults: {holdback: 4}
rules:
  - id: prompt
    when: max(prompt.harm) > 0.90
    then: {block: {}}
  - id: answer
    when: count(response.harm > 0.7, window=16) >= 2
    then: {block: {message: "no"}}
tests:
  - {name: t, given: {prompt: {harm: "0.95"}}, expect: {action: block, rules: [prompt]}}
  - {name: u, given: {response: {harm: "0.1 0.8x2"}}, expect: {action: block, rules: [answer], token: 2}}
"""
NOW = "2026-12-01T00:00:00+00:00"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


def interlock(*args):
    result = CliRunner().invoke(policy_app, [*map(str, args)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def in_json(*args):
    result = interlock(*args, "--format", "json")
    return result.exit_code, json.loads(result.stdout)


# --- check, test, schema


def test_check_tells_what_it_read_in_json(file):
    code, said = in_json("check", file)
    (policy,) = said["policies"]
    assert (code, said["exit_code"], said["problems"]) == (0, 0, [])
    assert (policy["path"], policy["rules"], policy["tests"]) == (str(file), 2, 2)


def test_strict_leaves_with_3_for_warnings_and_1_for_errors(file):
    file.write_text(POLICY.replace("defaults: {holdback: 4}\n", ""))
    assert interlock("check", file).exit_code == 0
    assert interlock("check", "--strict", file).exit_code == 3
    file.write_text(POLICY.replace("max(", "mxa("))
    assert interlock("check", "--strict", file).exit_code == 1


def test_problems_become_annotations_on_github(file):
    file.write_text(POLICY.replace("max(", "mxa("))
    said = interlock("check", "--format", "github", file)
    assert said.exit_code == 1
    assert said.stdout.startswith(
        f"::error file={file},line=7,col=11,title=unknown-function::unknown function 'mxa'"
    )
    assert "%0Ahint: did you mean 'max'?" in said.stdout


def test_all_paths_are_read_before_it_gives_up(file, tmp_path):
    said = interlock("check", tmp_path / "nowhere.yaml", file)
    assert said.exit_code == 1
    assert "nowhere.yaml:1:1: error[unreadable]" in said.stderr
    assert "ok: p@1" in said.stdout


def test_a_failing_test_is_annotated_at_its_place(file):
    file.write_text(POLICY.replace("action: block, rules: [answer]", "action: allow, rules: [answer]"))
    said = interlock("test", "--format", "github", file)
    assert said.exit_code == 1
    assert f"::error file={file},line=14,col=5,title=test-failed::test 'u' fails" in said.stdout
    code, data = in_json("test", file)
    assert (code, data["policies"][0]["failed"], data["problems"][0]["line"]) == (1, 1, 14)


def test_coverage_tells_what_no_test_reaches(file):
    more = "  - {id: quiet, when: max(response.harm) > 0.99, then: {annotate: {}}}\n"
    file.write_text(
        POLICY.replace("tests:\n", more + "tests:\n")
        .replace("  - {name: u", "  - {known_miss: true, name: u")
        .replace("0.1 0.8x2", "0.1")
    )
    code, data = in_json("test", "--coverage", file)
    assert (code, data["policies"][0]["coverage"]) == (
        0,
        {
            "num_rules": 3,
            "unmatched": ["answer", "quiet"],
            "unmissed": ["prompt"],
            "actions": ["annotate"],
            "answers": [],
            "phases": ["response"],
            "failures": True,
            "percent": pytest.approx(100 / 3),
        },
    )
    text = interlock("test", "--coverage", file).stdout
    assert "coverage: 1 of 3 rules" in text
    assert "no test makes a rule match in the response" in text


@pytest.mark.parametrize("form", Format)
def test_the_schema_is_json_in_every_format(form):
    said = interlock("schema", "--format", form)
    assert "PolicyDocument" in json.loads(said.stdout)["$defs"]


# --- fmt


UNTIDY = POLICY.replace(
    "    when: max(prompt.harm) > 0.90\n    then: {block: {}}\n",
    "    # here\n    then: {block: {}}\n    when: max(prompt.harm) > 0.90\n",
)


def test_fmt_writes_the_canonical_layout_once(file):
    file.write_text(UNTIDY)
    file.chmod(0o640)
    before = load_policy(file).digest
    assert interlock("fmt", "--check", file).exit_code == 1
    assert file.read_text() == UNTIDY
    assert interlock("fmt", file).stdout == f"laid out anew: {file}\n"
    assert file.read_text() == UNTIDY.replace(
        "    # here\n    then: {block: {}}\n    when: max(prompt.harm) > 0.90\n",
        "    when: max(prompt.harm) > 0.90\n    # here\n    then: {block: {}}\n",
    )
    assert load_policy(file).digest == before
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert in_json("fmt", "--check", file) == (0, {"command": "fmt", "exit_code": 0, "files": [{"file": str(file), "changed": False}], "problems": []})  # fmt: skip
    assert [p.name for p in file.parent.iterdir()] == ["policy.yaml"]


def test_fmt_follows_a_link_and_leaves_a_wrong_file_alone(file, tmp_path):
    file.write_text(UNTIDY)
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    assert interlock("fmt", link).exit_code == 0
    assert link.is_symlink()
    assert file.read_text() != UNTIDY
    file.write_text(UNTIDY.replace("when", "whne"))
    said = interlock("fmt", tmp_path)
    assert said.exit_code == 1
    assert "unknown key 'whne'" in said.stderr
    assert file.read_text() == UNTIDY.replace("when", "whne")


# --- diff


def changed(file, *replacements):
    text = POLICY
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    other = file.with_name("other.yaml")
    other.write_text(text)
    return other


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("0.90", "0.85", ["rule prompt: threshold 0.90 -> 0.85"]),
        ("window=16", "window=24", ["rule answer: window 16 -> 24"]),
        ("> 0.7, window=16) >= 2", "> 0.6, window=16) >= 3", ["rule answer: threshold 0.7 -> 0.6", "rule answer: threshold 2 -> 3"]),
        ("max(prompt.harm) > 0.90", "mean(prompt.harm) > 0.90", ["rule prompt: when max(prompt.harm) > 0.90 -> mean(prompt.harm) > 0.90"]),
        ("id: prompt\n", "id: prompt\n    mode: shadow\n", ["rule prompt: mode enforce -> shadow"]),
        ("id: prompt\n", "id: prompt\n    rollout: {percent: 10}\n", ["rule prompt: rollout.percent none -> 10.0", "rule prompt: rollout.by none -> tenant"]),
        ("id: prompt\n", "id: prompt\n    match: {tenants: [a, b]}\n", ["rule prompt: match.tenants [*] -> [a, b]"]),
        ("then: {block: {}}", "then: {log: {}}", ["rule prompt: action block -> log", "rule prompt: block.code content_filter -> none"]),
        ('message: "no"', 'message: "yes"', ["rule answer: block.message no -> yes"]),
        ("holdback: 4", "holdback: 8", ["defaults: holdback 4 -> 8", "rule prompt: holdback 4 -> 8", "rule answer: holdback 4 -> 8"]),
        ('version: "1"', 'version: "2"', ["policy: version 1 -> 2"]),
        ('harm: "0.95"', 'harm: "0.96"', ["test 't': given.prompt.harm 0.95 -> 0.96"]),
    ],
)  # fmt: skip
def test_diff_tells_what_changed_in_meaning(file, old, new, told):
    said = interlock("diff", file, changed(file, (old, new)))
    assert said.exit_code == 1
    assert said.stdout.splitlines() == told


def test_diff_tells_rules_that_came_and_went_and_their_order(file):
    other = changed(file, ("id: answer", "id: reply"), ("rules: [answer]", "rules: [reply]"))
    assert interlock("diff", file, other).stdout.splitlines() == [
        "rule answer: removed: block (enforce) when count(response.harm > 0.7, window=16) >= 2",
        "rule reply: added: block (enforce) when count(response.harm > 0.7, window=16) >= 2",
        "test 'u': expect.rules [answer] -> [reply]",
    ]
    swapped = changed(file, ("id: prompt", "id: x"), ("id: answer", "id: prompt"), ("id: x", "id: answer"))
    assert (
        "policy: order of rules prompt, answer -> answer, prompt" in interlock("diff", file, swapped).stdout
    )


def test_diff_compares_exceptions(file, tmp_path):
    exceptions = """\
apiVersion: interlock/v1
kind: Exceptions
metadata: {name: e, version: "1"}
exceptions:
  - {id: E-1, rules: [prompt], mode: shadow, reason: "for a red team", approved_by: [me], expires: 2027-01-01T00:00:00Z}
"""
    for name, text in (("one", exceptions), ("two", exceptions.replace("2027-01", "2027-02"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "policy.yaml").write_text(POLICY)
        (tmp_path / name / "exceptions.yaml").write_text(text)
    said = interlock("diff", tmp_path / "one", tmp_path / "two")
    assert said.stdout == "exception E-1: expires 2027-01-01T00:00:00Z -> 2027-02-01T00:00:00Z\n"
    assert (
        "exception E-1: added: shadow for prompt until 2027-01"
        in interlock("diff", file, tmp_path / "one").stdout
    )


def test_diff_leaves_as_diff_does(file):
    other = changed(
        file,
        ("rules:", "# the rules\nrules:"),
        ("max(prompt.harm) > 0.90", "'max( prompt.harm )>0.9'"),
    )
    assert interlock("diff", file, other).exit_code == 0
    assert in_json("diff", file, other)[1]["equal"] is True
    code, data = in_json("diff", file, changed(file, ("0.90", "0.85")))
    assert code == 1
    assert data["changes"] == [{"kind": "changed", "thing": "rule", "name": "prompt", "field": "threshold", "before": "0.90", "after": "0.85"}]  # fmt: skip
    assert interlock("diff", file, file.parent / "nowhere").exit_code == 2
    github = interlock("diff", file, changed(file, ("0.90", "0.85")), "--format", "github").stdout
    assert "::notice title=interlock policy diff::rule prompt: threshold 0.90 -> 0.85\n" in github


# --- explain


def test_explain_says_what_a_rule_does(file):
    said = interlock("explain", file, "answer").stdout
    for part in (
        "each token of the answer",
        "closed: a missing",
        "the last 4 tokens judged",
        "everyone",
        'saying "no"',
    ):
        assert part in said
    assert "rule prompt" not in said
    code, data = in_json("explain", file)
    assert [rule["rule"] for rule in data["rules"]] == ["prompt", "answer"]
    assert code == 0


def test_explain_tells_why_a_rule_may_act_without_evidence(file):
    text = file.read_text()
    assert "override" not in interlock("explain", file).stdout
    file.write_text(text.replace("    when:", "    override: {reason: incident 4711}\n    when:", 1))
    assert "because: incident 4711" in interlock("explain", file).stdout


def test_explain_follows_scores_token_by_token(file):
    code, data = in_json("explain", file, "answer", "--scores", "response.harm=0.1,0.8x2,nan,-")
    rows = data["trace"]["rows"]
    assert code == 0
    assert [row["verdicts"]["answer"] for row in rows] == ["false", "false", "true", "error", "error"]
    assert [row["values"]["count(response.harm > 0.7, window=16)"] for row in rows] == [0, 1, 2, 2, 2]
    assert rows[3]["scores"]["response.harm"] == "nan"
    assert data["trace"]["outcome"] == "outcome: block; matched: answer (enforce) at response token 2"
    text = interlock("explain", file, "prompt", "--scores", "prompt.harm=0.95").stdout
    assert "outcome: block; matched: prompt (enforce) at prompt token 0" in text


def test_explain_tells_which_exceptions_are_in_force(file, tmp_path):
    (tmp_path / "e.yaml").write_text(
        "apiVersion: interlock/v1\nkind: Exceptions\nmetadata: {name: e, version: '1'}\nexceptions:\n"
        "  - {id: E-1, rules: [pro*], mode: shadow, match: {tenants: [red]}, reason: 'for a red team',"
        " approved_by: [me], starts: 2026-01-01T00:00:00Z, expires: 2027-01-01T00:00:00Z}\n"
    )
    for now, told in (
        ("2025-01-01T00:00:00Z", "not in force before 2026"),
        ("2026-06-01T00:00:00Z", "in force until 2027"),
        ("2028-01-01T00:00:00Z", "expired 2027"),
    ):
        said = interlock("explain", tmp_path, "--now", now).stdout
        assert f"E-1 ({told}" in said
        assert said.count("E-1") == 1


@pytest.mark.parametrize(
    "options",
    [
        ("--scores", "harm"), ("--scores", "prompt=1"), ("--scores", "reply.harm=1"), ("--scores", "prompt.harm=x"),
        ("--scores", "prompt.harm=0.1x999999999"), ("--now", "yesterday"), ("--now", "2026-01-01"), ("nothing",),
    ],
)  # fmt: skip
def test_explain_refuses_wrong_options(file, options):
    said = interlock("explain", file, *options)
    assert (said.exit_code, "Traceback" in said.output) == (2, False)


# --- replay


def record(prompt, response, number=0):
    policy, subject = policy_from_text(POLICY), Subject(request_id=str(number))
    outcome = replay(
        policy,
        subject,
        {"harm": prompt},
        {"harm": response},
        datetime.fromisoformat(NOW),
    )
    scores = {Phase.PROMPT: {"harm": prompt}, Phase.RESPONSE: {"harm": response}}
    usage = {"prompt_tokens": len(prompt), "completion_tokens": len(response)}
    return orjson.dumps(decision_record(decision_id=f"d{number}", ts=NOW, outcome=outcome, subject=subject, policy=policy, scores=scores, usage=usage)) + b"\n"  # fmt: skip


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "decisions.jsonl"
    path.write_bytes(record([0.1], [0.2], 0) + record([0.88], [], 1) + record([0.1], [0.1, 0.9, 0.9], 2))
    return path


def test_replay_tells_who_would_newly_be_blocked(file, log):
    stricter = changed(file, ("0.90", "0.85"))
    code, data = in_json("replay", "--audit", log, stricter)
    assert (code, data["judged"], data["same"], data["tokens"]) == (0, 3, 2, 7)
    assert data["changes"] == [{"before": "allow", "before_rule": "", "after": "block", "after_rule": "prompt", "count": 1, "examples": ["d1"]}]  # fmt: skip
    assert "1 allow -> block by rule prompt: d1" in interlock("replay", "--audit", log, stricter).stdout
    github = interlock("replay", "--audit", log, stricter, "--format", "github").stdout
    assert "::notice title=interlock policy replay::1 allow -> block by rule prompt: d1" in github


def test_replay_can_demand_that_nothing_differs(file, log):
    assert interlock("replay", "--expect-same", "--audit", log, file).exit_code == 0
    assert (
        interlock("replay", "--expect-same", "--audit", log, changed(file, ("0.90", "0.85"))).exit_code == 1
    )


def test_a_torn_last_line_is_tolerated_and_told(file, log):
    whole = log.read_bytes()
    log.write_bytes(whole + record([0.1], [0.2], 9)[:100])
    code, data = in_json("replay", "--audit", log, file)
    assert (code, data["judged"]) == (0, 3)
    assert [(u["count"], "torn" in u["reason"], u["examples"]) for u in data["unjudged"]] == [
        (1, True, [f"{log}:4"])
    ]
    log.write_bytes(whole.rstrip(b"\n"))  # only the end of the line is missing: the record is whole
    assert in_json("replay", "--audit", log, file)[1]["judged"] == 3


def test_lines_that_are_no_records_are_counted_by_reason(file, log):
    log.write_bytes(b"\xff\xfe\x00\n{}\n[1]\n\n" + log.read_bytes() + b"nonsense\n")
    data = in_json("replay", "--audit", log, file)[1]
    assert data["judged"] == 3
    assert {u["reason"]: u["count"] for u in data["unjudged"]} == {
        "a line is not JSON": 2,
        "not a decision record": 2,
    }


def test_several_logs_are_one(file, log):
    assert in_json("replay", "--audit", log, "--audit", log, file)[1]["judged"] == 6


def test_a_log_without_a_record_is_an_error(file, tmp_path):
    for content in (b"", b"\n\n", os.urandom(5000)):
        (tmp_path / "log").write_bytes(content)
        said = interlock("replay", "--audit", tmp_path / "log", file)
        assert said.exit_code == 1
        assert "error[nothing-judged]" in said.stderr


@settings(deadline=None)
@given(st.lists(st.binary(max_size=30)), st.integers(1, 20))
def test_lines_are_read_whole_or_told_as_too_long(tmp_path_factory, lines, limit):
    content = b"\n".join(lines)
    path = tmp_path_factory.mktemp("log") / "log"
    path.write_bytes(content)
    read = []
    found = list(log_lines(path, read.append, limit))
    assert sum(read) == len(content)
    pieces = content.split(b"\n")
    numbered = [(i, p + b"\n" * (i < len(pieces))) for i, p in enumerate(pieces, 1)]
    numbered = [(i, p) for i, p in numbered if p.strip() or len(p) > limit]
    assert [line.number for line in found] == [i for i, _ in numbered]
    for line, (_, piece) in zip(found, numbered, strict=True):
        assert line.too_long or line.data == piece
        assert line.too_long == (len(piece) > limit)
        assert line.complete == piece.endswith(b"\n")


# --- all of them


COMMANDS = [
    ("check",),
    ("test", "--coverage"),
    ("fmt",),
    ("fmt", "--check"),
    ("diff", "{good}"),
    ("explain",),
    ("replay", "--audit", "{good}"),
]


@pytest.mark.parametrize("form", Format)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    "what", ["missing", "folder", "binary", "huge", "closed", "loop", "long name", "yaml folder"]
)
def test_an_unusable_file_is_an_error_with_its_name(file, tmp_path, command, what, form):
    bad = tmp_path / "bad.yaml"
    match what:
        case "missing":
            pass
        case "folder":
            bad.mkdir()
        case "binary":
            bad.write_bytes(bytes(range(256)))
        case "huge":
            bad.write_bytes(b"# a comment\n" * 200_000)
        case "closed":
            bad = file.parent / "closed" / "bad.yaml" if os.geteuid() else tmp_path / "also-missing.yaml"
        case "loop":
            bad.symlink_to(bad)
        case "long name":
            bad = tmp_path / ("x" * 5000)
        case "yaml folder":
            (bad / "inner.yaml").mkdir(parents=True)
    said = interlock(*(part.format(good=file) for part in command), bad, "--format", form)
    assert said.exit_code == (2 if command[0] == "diff" else 1)
    assert "Traceback" not in said.output
    assert str(bad)[:200] in re.sub(r"%3A", ":", said.output)
    if form is Format.JSON:
        assert json.loads(said.stdout)["problems"]


def test_a_log_that_is_a_folder_is_an_error(file, tmp_path):
    said = interlock("replay", "--audit", tmp_path, file)
    assert (said.exit_code, "Is a directory" in said.stderr) == (1, True)


def test_wrong_usage_leaves_with_2(file):
    for args in (
        ("check",),
        ("check", file, "--format", "xml"),
        ("diff", file),
        ("replay", file),
        ("nonsense",),
    ):
        assert interlock(*args).exit_code == 2


def test_nothing_in_a_message_becomes_a_command_or_a_control_code(capsys):
    nasty = "a\n::error::b\x1b[31m\r%,:"
    problem = Problem(f"{nasty}.yaml", 1, 1, "x", nasty)
    print_report(Report("check", text=nasty, problems=(problem,), notices=(nasty,)), Format.GITHUB)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("::error")] == [
        "::error file=a%0A%3A%3Aerror%3A%3Ab\\x1b[31m%0D%25%2C%3A.yaml,line=1,col=1,title=x::a%0A::error::b\\x1b[31m%0D%25,:"
    ]
    assert "| ::error::b\\x1b[31m\\x0d%,:" in lines


def test_a_reader_that_goes_away_leaves_no_traceback():
    """As `interlock policy schema | head -1`."""
    command = [sys.executable, "-c", "from server.cli import main; main()", "policy", "schema"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # noqa: S603  # our own command
    process.stdout.close()
    said = process.stderr.read()
    process.wait(timeout=60)
    process.stderr.close()
    assert said == b""
    assert process.returncode == 1


def test_a_name_that_the_terminal_cannot_show_is_escaped(tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", "from server.cli import main; main()", "policy", "check"]
    path = os.fsencode(tmp_path) + b"/\xff\xc3\xa9.yaml"
    done = subprocess.run([*command, path], capture_output=True, env=environment, check=False)  # noqa: S603  # our own command
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"\\xe9.yaml" in done.stderr


def test_sarif_has_what_the_standard_requires(file):
    """SARIF 2.1.0: required properties, and those that code hosts go by."""
    file.write_text(POLICY.replace("max(prompt", "mxa(prompt"))
    said = CliRunner().invoke(policy_app, ["check", "--format", "sarif", str(file)])
    assert said.exit_code == 1
    log = json.loads(said.stdout)
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "interlock policy check"
    assert run["results"]
    for result in run["results"]:
        assert result["message"]["text"]
        assert result["level"] in {"error", "warning", "note"}
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        (location,) = result["locations"]
        place = location["physicalLocation"]
        assert place["artifactLocation"]["uri"] == file.as_uri()
        assert min(place["region"].values()) >= 1


def test_sarif_of_a_policy_without_problems_is_a_run_without_results(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    said = CliRunner().invoke(policy_app, ["check", "--format", "sarif", str(file.name)])
    (run,) = json.loads(said.stdout)["runs"]
    assert [result for result in run["results"] if result["level"] == "error"] == []


def test_sarif_paths_are_relative_uris(file, monkeypatch):
    (file.parent / "my rules.yaml").write_text("rules: [")
    monkeypatch.chdir(file.parent)
    said = CliRunner().invoke(policy_app, ["check", "--format", "sarif", "my rules.yaml"])
    (result,) = json.loads(said.stdout)["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "my%20rules.yaml"
