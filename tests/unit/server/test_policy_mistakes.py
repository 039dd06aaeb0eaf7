"""What people get wrong in policies: each mistake is told at its place, with what is allowed, by every tool, and never as a traceback."""

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from monitors.artifacts import load_folder, save_monitor
from monitors.base import Calibration, Link, Monitor, Threshold
from monitors.linear import Linear
from monitors.types import HookPoint
from server.policy_cli import policy_app
from server.policy_store import PolicyStore, Sources

HEAD = 'apiVersion: interlock/v1\nkind: Policy\nmetadata: {name: p, version: "1"}\n'
TOO_DEEP = "rules: " + "[" * 5000 + "]" * 5000
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


def rule(when="max(prompt.harm) > 0.9", then="{block: {}}", more="", rule_id="r"):
    """The id stands at 5:9, the condition at 6:11, the action at 7:11 and what else there is at 8:5."""
    return f"{HEAD}rules:\n  - id: {rule_id}\n    when: {when}\n    then: {then}\n    {more}\n"


def case(given="{prompt: {harm: 0.95}}", expect="{action: block}"):
    """What is given stands at 11:12, what is expected at 12:13."""
    return rule() + f"tests:\n  - name: t\n    given: {given}\n    expect: {expect}\n"


MISTAKES = {
    # YAML
    "unclosed list": (HEAD + "rules: [", "4:9", "yaml", "'<stream end>'"),
    "tab": (HEAD + "rules:\n\t- id: r\n", "5:1", "yaml", "indent with blanks"),
    "colon in a text": (rule(then="{block: {message: no: way}}"), "7:31", "yaml", "quote text that holds a colon"),
    "at sign": (rule("@max"), "6:11", "yaml", "quote text that begins with a special character"),
    "duplicate key": (rule(more="when: max(prompt.x) > 0.5"), "8:5", "duplicate-key", "already given in line 6"),
    "tag": (rule(then="!Block {block: {}}"), "7:11", "tag", "write the plain value"),
    "python object": (HEAD + 'rules: !!python/object/apply:os.system ["true"]\n', "4:8", "tag", "os.system"),
    "alias bomb": (HEAD + BOMB, "7:5", "too-large", "10,000 values"),
    "alias of itself": (HEAD + "rules: &a [*a]\n", "4:12", "yaml", "'*a'"),
    "merge key": (HEAD + "rules:\n  - <<: &a {id: r}\n", "5:5", "unknown-key", "no merge keys"),
    "deep nesting": (HEAD + TOO_DEEP, "4:39", "too-deep", "32 levels"),
    "two documents": (rule() + "---\n" + rule(), "10:1", "yaml", "one file for each"),
    "list as key": (HEAD + "? [a, b]\n: c\n", "4:3", "yaml", "plain text"),
    "escape": (HEAD + 'x: "\\q"\n', "4:6", "yaml", "unknown escape"),
    "NUL": (HEAD + 'x: "a\0b"\n', "4:6", "yaml", "U+0000"),
    "lone surrogate": (rule(then='{block: {message: "\\uD800"}}'), "7:29", "value", "unicode"),
    "empty": ("", "1:1", "empty", "start with apiVersion"),
    "scalar": ("hello\n", "1:1", "type", "a policy file is a mapping"),
    # the form
    "version as a number": (HEAD.replace('"1"', "1.10"), "3:30", "type", 'put it in quotes: "1.10"'),
    "kind": (rule().replace("kind: Policy", "kind: policy"), "2:7", "unknown-value", "did you mean 'Policy'?"),
    "api version": (rule().replace("/v1", "/v2"), "1:13", "unknown-value", "known: interlock/v1"),
    "no api version": (HEAD.split("\n", 1)[1], "1:1", "missing-key", "write apiVersion: interlock/v1"),
    "name": (HEAD.replace("name: p", "name: pólicy"), "3:18", "value", "lower-case letters, digits and hyphens"),
    "no rule": (HEAD + "rules: [max]\n", "4:9", "type", "its keys: id, severity"),
    "rules as a mapping": (HEAD + "rules: {a: b}\n", "4:8", "type", "a list is needed, not a mapping"),
    "empty defaults": (HEAD + "defaults:\nrules: []\n", "5:1", "type", "a mapping is needed, not an empty value"),
    "YAML 1.1's off": (HEAD + "defaults: {mode: false}\n", "4:18", "unknown-value", "unknown value false"),
    "holdback": (HEAD + "defaults: {holdback: 257}\n", "4:22", "value", "allowed: from 0 to 256"),
    "holdback as text": (HEAD + 'defaults: {holdback: "8"}\n', "4:22", "type", "a whole number is needed, not '8'"),
    "budget": (HEAD + "defaults: {budget: 5 ms}\n", "4:20", "value", "with its unit (us, ms or s)"),
    "no budget": (HEAD + "defaults: {budget: 0ms}\n", "4:20", "value", "the default is 1s"),
    "share": (HEAD + "defaults: {log: {sample: 10%}}\n", "4:26", "type", "allowed: from 0 to 1"),
    "NaN": (HEAD + "defaults: {log: {sample: .nan}}\n", "4:26", "type", "a finite number is needed"),
    "precedence": (HEAD.replace('"1"', '"1", precedence: .inf'), "3:47", "type", "a whole number is needed"),
    "unknown key": (rule(more="wen: x"), "8:5", "unknown-key", "did you mean 'when'?"),
    "id": (rule(rule_id="a_b"), "5:9", "value", "'a_b' is not a valid id"),
    "severity": (rule(more="severity: severe"), "8:15", "unknown-value", "known: critical, high, low, medium"),
    "tags": (rule(more="tags: harm"), "8:11", "type", "write [harm]"),
    "rollout": (rule(more="rollout: {percent: 101}"), "8:24", "value", "allowed: from 0 to 100"),
    "rollout's key": (rule(more="rollout: {percent: 1, by: user}"), "8:31", "unknown-value", "key, request, tenant"),
    "blank reason": (rule(more='override: {reason: "         "}'), "8:24", "value", "at least 8 characters"),
    "pin": (rule(more="pins: [harm]"), "8:12", "value", "harm@3"),
    # globs
    "empty glob": (rule(more='match: {tenants: [""]}'), "8:23", "value", "fits no name"),
    "open bracket": (rule(more='match: {models: ["a[b"]}'), "8:22", "value", "not closed"),
    "nobody": (rule(more='match: {not_tenants: ["*"]}'), "8:12", "unreachable", "takes back all of tenants"),
    # actions
    "no action": (rule(then="{}"), "7:11", "value", "exactly one action"),
    "two actions": (rule(then="{block: {}, log: {}}"), "7:11", "value", "exactly one action"),
    "action as text": (rule(then="block"), "7:11", "type", "write {block: {}}"),
    "unknown action": (rule(then="{deny: {}}"), "7:12", "unknown-action", "known: annotate, block"),
    "setting of none": (rule(then="{log: {level: 1}}"), "7:18", "unknown-key", "it has no settings"),
    "code": (rule(then="{block: {code: 403}}"), "7:26", "unknown-value", "known: content_filter"),
    "long message": (rule(then="{block: {message: " + "x" * 4001 + "}}"), "7:29", "value", "at most 4,000"),
    "strength": (rule(then="{steer: {vector: v, strength: 1e400}}"), "7:41", "value", "a finite number is needed"),
    "layers": (rule(then="{steer: {vector: v, strength: 1, layers: [3]}}"), "7:44", "unknown-key", "hook points"),
    "deadline": (rule(then="{escalate: {to: j, deadline: 61s}}"), "7:40", "value", "at most 60s"),
    "no target": (rule(then='{escalate: {to: ""}}'), "7:27", "value", "it is empty"),
    # conditions
    "condition in braces": (rule("{max: 3}"), "6:11", "type", "text that begins with { or ["),
    "&&": (rule("max(prompt.a) > 1 && turn() > 1"), "6:29", "unsupported", "write `and`"),
    "AND": (rule("max(prompt.a) > 1 AND turn() > 1"), "6:29", "syntax", "in lower case"),
    "=": (rule("max(prompt.a) = 1"), "6:25", "syntax", "write `==`"),
    "unfinished": (rule("max(prompt.a) > 1 and"), "6:32", "syntax", "missing at the end"),
    "capitals": (rule("MAX(prompt.a) > 1"), "6:11", "unknown-function", "did you mean 'max'?"),
    "hyphen": (rule("max(prompt.self-harm) > 1"), "6:15", "type", "letters, digits and _ only"),
    "number without ()": (rule("tokens > 3"), "6:11", "unknown-name", "write tokens()"),
    "option twice": (rule("mean(prompt.a, window=4, window=8) > 1"), "6:36", "unknown-option", "given twice"),
    "budget twice": (rule("exceeds(prompt.a, fpr=0.1, fpr=0.2)"), "6:38", "unknown-option", "given twice"),
    "folded": (rule(">-\n      max(prompt.harm)\n      > maxx(prompt.harm)"), "8:9", "unknown-function", "'max'"),
    "import": (rule("__import__('os').system('id') > 1"), "6:22", "unsupported", "no strings"),
    # tests
    "series": (case("{prompt: {harm: 0.1*12}}"), "11:28", "value", "0.1x12 (twelve times)"),
    "no token": (case("{prompt: {harm: 0.1x0}}"), "11:28", "value", "at least once"),
    "too many tokens": (case("{prompt: {harm: 0.1x9999999}}"), "11:28", "value", "at most 100,000"),
    "infinite score": (case('{prompt: {harm: "1e999"}}'), "11:28", "value", "write nan"),
    "lengths": (case("{prompt: {harm: 0.1x3, x: 0.1x4}}"), "11:21", "value", "harm has 3, x has 4"),
    "time without zone": (case("{now: 2026-12-01T00:00:00}"), "11:18", "value", "2026-12-01T00:00:00Z"),
    "seconds since 1970": (case('{now: "1764547200"}'), "11:18", "value", "write a time with its zone"),
    "month 13": (case("{now: 2026-13-01T00:00:00Z}"), "11:18", "value", "month value"),
    "bucket": (case("{rollout_bucket: 100}"), "11:29", "value", "from 0 to below 100"),
    "no such action": (case(expect="{action: blocked}"), "12:22", "unknown-value", "did you mean 'block'?"),
    "unknown rule": (case(expect="{action: block, rules: [harm]}"), "12:37", "unknown-rule", "known: r"),
}  # fmt: skip


def interlock(*args):
    result = CliRunner().invoke(policy_app, [*map(str, args)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "p.yaml"


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_at_its_place_with_what_is_allowed(file, name):
    text, place, code, told = MISTAKES[name]
    file.write_text(text)
    said = interlock("check", "p.yaml")
    assert (said.exit_code, said.stdout) == (1, "")
    lines = [line for line in said.stderr.splitlines() if line.startswith(f"p.yaml:{place}: error[{code}]: ")]
    assert len(lines) == 1, said.stderr
    assert told in said.stderr.split(lines[0])[1] or told in lines[0]
    assert "Input should" not in said.stderr
    assert "Tuple" not in said.stderr


@pytest.mark.parametrize("name", list(MISTAKES)[::9])
def test_every_tool_tells_a_mistake_in_every_format(file, name):
    file.write_text(MISTAKES[name][0])
    log = file.with_name("decisions.jsonl")
    log.touch()
    for command in (
        ["test"],
        ["explain"],
        ["diff", "p.yaml"],
        ["fmt", "--check"],
        ["replay", "--audit", log],
    ):
        codes = {"diff": {2}, "fmt": {0, 1}}.get(command[0], {1})  # fmt looks at the form only
        for form in ("text", "json", "github", "sarif"):
            said = interlock(*command, "p.yaml", "--format", form)
            assert said.exit_code in codes, (command, form, said.output)
            if form in {"json", "sarif"}:
                json.loads(said.stdout)


def test_mistakes_of_form_do_not_hide_those_in_conditions(file):
    file.write_text(rule("maxx(prompt.harm) > 0.9", then="{blok: {}}"))
    said = interlock("check", "p.yaml")
    assert "p.yaml:6:11: error[unknown-function]" in said.stderr
    assert "p.yaml:7:12: error[unknown-action]" in said.stderr


@pytest.mark.parametrize(
    ("text", "place", "code"),
    [
        (HEAD, "1:1", "no-rules"),
        (rule(more="match: {endpoints: [chatt]}"), "8:25", "odd-glob"),
        (rule(more='match: {tenants: ["^acme.*$"]}'), "8:23", "odd-glob"),
        (rule(more="match: {metadata: {app: [kids]}}"), "8:12", "client-chosen"),
        (case() + "  - name: t\n    expect: {action: allow}\n", "13:11", "duplicate-test"),
    ],
)
def test_doubts_are_warnings(file, text, place, code):
    file.write_text(text)
    assert interlock("check", "p.yaml").exit_code == 0
    said = interlock("check", "--strict", "p.yaml")
    assert (said.exit_code, f"p.yaml:{place}: warning[{code}]" in said.stderr) == (3, True)


EXCEPTIONS = """\
apiVersion: interlock/v1
kind: Exceptions
metadata: {name: e, version: "1"}
exceptions:
  - {id: E1, rules: [r], mode: shadow, reason: long enough, approved_by: [x], expires: 2027-01-01T00:00:00Z}
tests:
  - {name: weakened, given: {prompt: {harm: 0.95}}, expect: {action: allow, shadow: [r]}}
"""


@pytest.mark.parametrize(
    ("change", "col", "code", "told"),
    [
        (("[r]", "[zzz]"), 22, "unknown-rule", "known: r"),
        (("[r]", '["[r"]'), 22, "value", "not closed"),
        (("[r]", "[]"), 21, "value", "the list is empty"),
        (("shadow,", "off,"), 22, "critical-off", "use `mode: shadow`"),
        (("shadow,", "enforce,"), 32, "unknown-value", "known: off, shadow"),
        (("[x]", '[" "]'), 75, "value", "it is empty"),
        (("2027-01-01T00:00:00Z", "2027-01-01"), 88, "value", "2026-12-01T00:00:00Z"),
        (("2027-01-01T00:00:00Z", "2027-02-30T00:00:00Z"), 88, "value", "day value"),
        (("expires:", "starts: 2028-01-01T00:00:00Z, expires:"), 118, "value", "later than starts"),
        (("E1", '"E 1"'), 10, "value", "letters, digits, '.', '_' and hyphens"),
    ],
)
def test_a_wrong_exception_is_told_at_its_place(file, change, col, code, told):
    file.write_text(rule(more="severity: critical"))
    file.with_name("e.yaml").write_text(EXCEPTIONS.partition("tests:")[0].replace(*change, 1))
    said = interlock("check", ".")
    assert said.exit_code == 1
    assert f"e.yaml:5:{col}: error[{code}]" in said.stderr
    assert told in said.stderr


def test_exceptions_are_read_with_the_policy_that_they_are_from(file):
    """Given by themselves, as by a pre-commit hook: with their folder. Given with other files: with those."""
    file.write_text(rule())
    file.with_name("e.yaml").write_text(EXCEPTIONS)
    assert "1 passed" in interlock("test", "e.yaml").stdout
    file.with_name("other.yaml").write_text("rules: [")
    assert interlock("test", "e.yaml").exit_code == 1
    said = interlock("test", "p.yaml", "e.yaml", "other.yaml")
    assert (said.exit_code, "other.yaml:1:9" in said.stderr) == (1, True)
    said = interlock("test", "p.yaml", "e.yaml")
    assert (said.exit_code, said.stdout.count("passed")) == (0, 1)
    assert interlock("diff", "p.yaml", "p.yaml").exit_code == 0


def test_what_editors_leave_in_a_folder_is_no_part_of_the_policy(file):
    file.write_text(rule())
    file.with_name(".#p.yaml").symlink_to("someone@host.4711:1700000000")  # Emacs' lock
    file.with_name("p.yaml~").write_text("old: [")
    assert interlock("check", ".").exit_code == 0
    file.with_name("q.yaml").symlink_to("nowhere")
    assert "q.yaml:1:1: error[unreadable]" in interlock("check", ".").stderr


@pytest.mark.parametrize("name", [b"p-\xff.yaml", b"a\nb.yaml", b"\xe2\x80\xae.yaml"])
@pytest.mark.parametrize("form", ["text", "json", "github", "sarif"])
def test_a_name_that_is_no_plain_text_is_told_all_the_same(file, name, form):
    odd = file.parent / name.decode("utf-8", "surrogateescape")
    odd.write_text("rules: [")
    said = interlock("check", ".", "--format", form)
    assert said.exit_code == 1
    if form == "text":
        assert len(said.stderr.splitlines()) == 3


@pytest.mark.parametrize(
    ("data", "place", "code"),
    [
        (rule(then="{block: {message: café}}").encode("latin-1"), "7:32", "encoding"),
        (rule().encode("utf-16"), "1:1", "encoding"),
        (rule().encode("utf-16-le"), "1:2", "yaml"),
        (b"\xef\xbb\xbf" + rule("maxx(prompt.a) > 1").encode(), "6:11", "unknown-function"),
        (rule("maxx(prompt.a) > 1").replace("\n", "\r\n").encode(), "6:11", "unknown-function"),
        (rule().encode() + b"#" * (1 << 20), "1:1", "too-large"),
    ],
)
def test_bytes_that_are_no_utf_8_text_are_told(file, data, place, code):
    file.write_bytes(data)
    assert f"p.yaml:{place}: error[{code}]" in interlock("check", "p.yaml").stderr


# --- what only the monitors can show


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """A probe that 500 benign prompts certify at 1 %, and no further."""
    folder = tmp_path_factory.mktemp("monitors")
    rates = [Threshold("prompt", fpr, value, certified=True) for fpr, value in ((0.01, 0.7), (0.001, 0.9))]
    harm = Monitor(
        "harm",
        Linear((HookPoint(0),), torch.ones(1, 4), torch.zeros(1)),
        link=Link.SIGMOID,
        version="3",
        calibration=Calibration(num_requests=500, confidence=0.95, thresholds=tuple(rates)),
    )
    save_monitor(harm, folder / "harm", fingerprint="model")
    return folder


@pytest.mark.parametrize(
    ("text", "problem", "told"),
    [
        (rule("max(prompt.ham) > 0.9"), "6:22: error[unknown-monitor]", "did you mean 'harm'?"),
        (rule("max(prompt.harm) > 1"), "6:30: error[unreachable]", "lies between 0 and 1"),
        (rule("exceeds(prompt.harm, fpr=0.001)"), "6:36: error[uncertified]", "needs at least 2,995"),
        (rule("exceeds(prompt.harm, fpr=0.02)"), "6:36: error[unknown-budget]", "known: 0.001 (not certified), 0.01"),
        (rule("exceeds(response.harm, fpr=0.01)"), "6:11: error[uncalibrated]", "Its budgets: prompt"),
        (rule("max(response.harm) > 0.9"), "7:12: error[uncalibrated]", "override: {reason: ...}"),
        (rule("mean(response.harm, window=65) > 0.9", "{log: {}}"), "6:11: error[unreachable]", "at most 64"),
        (rule(then="{steer: {vector: calm, strength: 1}}"), "7:28: error[unknown-vector]", "no steering vectors"),
        (rule(more="pins: [harm@2]"), "8:12: error[other-version]", "harm@3 is installed"),
    ],
)  # fmt: skip
def test_with_a_folder_of_monitors_a_policy_is_checked_as_the_server_does(
    file, artifacts, text, problem, told
):
    file.write_text(text)
    said = interlock("check", "--monitors", artifacts, "--max-response-tokens", 64, "p.yaml")
    assert (said.exit_code, f"p.yaml:{problem}" in said.stderr) == (1, True), said.stderr
    assert told in said.stderr


def test_tests_run_with_the_thresholds_of_the_monitors(file, artifacts):
    file.write_text(
        rule("exceeds(prompt.harm, fpr=0.01)")
        + "tests:\n  - {name: t, given: {prompt: {harm: 0.71}}, expect: {action: block}}\n"
    )
    assert interlock("test", "p.yaml").exit_code == 1  # a budget without a calibration has no threshold
    assert interlock("test", "--monitors", artifacts, "p.yaml").exit_code == 0


def test_the_digest_with_monitors_is_the_servers(file, artifacts):
    file.write_text(rule("exceeds(prompt.harm, fpr=0.01)"))
    told = json.loads(interlock("check", "--monitors", artifacts, "p.yaml", "--format", "json").stdout)
    without = json.loads(interlock("check", "p.yaml", "--format", "json").stdout)
    served = PolicyStore(Sources(file, artifacts, lambda: _read(artifacts))).current.digest
    assert told["policies"][0]["digest"] == served != without["policies"][0]["digest"]


def _read(artifacts):
    return load_folder(artifacts, fingerprint="model", d_model=4, num_layers=1)


@pytest.mark.parametrize("what", ["missing", "spoiled"])
def test_monitors_that_can_t_be_read_are_one_problem(file, artifacts, tmp_path, what):
    file.write_text(rule())
    folder = tmp_path / "copy"
    if what == "spoiled":
        shutil.copytree(artifacts, folder)
        (folder / "harm" / "weights.safetensors").write_bytes(b"x")
    said = interlock("check", "--monitors", folder, "p.yaml")
    assert (said.exit_code, said.stderr.count("error[artifacts]")) == (1, 1)
