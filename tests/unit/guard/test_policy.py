"""Loading: the examples, exact places of errors, merging, lint, maturity, digest, rollout, exceptions."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.errors import PolicyError
from guard.policy import load_policy, policy_from_text
from guard.policy_test import Status, run_tests
from guard.schema import json_schema
from guard.scope import bucket
from guard.types import (
    Budget,
    Mode,
    MonitorInfo,
    Phase,
    Say,
    Scope,
    Steer,
    StepScores,
    Subject,
    VectorInfo,
)

HERE = Path(__file__).parent / "policies"
NOW = datetime(2026, 12, 1, tzinfo=UTC)
HEAD = "apiVersion: interlock/v1\nkind: Policy\nmetadata: {name: p, version: '1'}\n"
HARM = MonitorInfo("harm", 0.0, 1.0, (Budget(Scope.PROMPT, 0.001, 0.9, certified=True),), 3_000)
KNOWN = {"monitors": {"harm": HARM}, "vectors": {"honesty": VectorInfo("honesty", steerable=True)}}
RULE = "  - id: r\n    when: max(prompt.harm) > 0.9\n    then: {block: {}}\n"


def problems(text, **known):
    with pytest.raises(PolicyError) as caught:
        policy_from_text(text, **known)
    return caught.value.problems


def told(text, **known):
    return [(p.line, p.col, p.code) for p in problems(text, **known)]


@pytest.mark.parametrize("name", ["baseline.yaml", "tenants.yaml", "."])
def test_the_examples_pass_their_own_tests(name):
    report = run_tests(load_policy(HERE / name))
    assert report.results
    assert all(result.status is Status.PASSED for result in report.results), "\n".join(
        map(str, report.results)
    )


def test_the_examples_leave_one_rule_untested():
    report = run_tests(load_policy(HERE))
    assert report.uncovered == ("medical-canned",)


def test_exceptions_alone_are_no_policy():
    with pytest.raises(PolicyError, match="load the folder"):
        load_policy(HERE / "exceptions.yaml")


def test_name_version_and_digest():
    policy = load_policy(HERE / "baseline.yaml")
    assert re.fullmatch(r"baseline@2026\.11\.22-1#[0-9a-f]{12}", str(policy))
    assert policy.monitors == {(Phase.PROMPT, "harm"), (Phase.RESPONSE, "deception")}
    assert policy.budget_s == 0.005


def test_the_digest_follows_the_content_and_not_the_layout():
    one = policy_from_text(HEAD + "rules:\n" + RULE)
    same = policy_from_text(
        "# hello\n" + HEAD + "rules:\n\n" + RULE.replace("{block: {}}", "\n      block: {}")
    )
    other = policy_from_text(HEAD + "rules:\n" + RULE.replace("0.9", "0.8"))
    assert one.digest == same.digest != other.digest


@pytest.mark.parametrize(
    ("body", "line", "col", "code", "hint"),
    [
        ("rulez: []\n", 4, 1, "unknown-key", "did you mean 'rules'"),
        ("rules:\n" + RULE.replace("block", "blok"), 7, 12, "unknown-action", "did you mean 'block'"),
        ("rules:\n" + RULE.replace("block: {}", "block: {mesage: x}"), 7, 20, "unknown-key", "did you mean 'message'"),
        ("rules:\n" + RULE + "    mode: enforc\n", 8, 11, "unknown-value", "did you mean 'enforce'"),
        ("rules:\n" + RULE.replace("{block: {}}", "block"), 7, 11, "type", "write {block: {}}"),
        ("rules:\n" + RULE.replace("{block: {}}", "{}"), 7, 11, "value", ""),
        ("rules:\n" + RULE.replace("block: {}", "block: {}, log: {}"), 7, 11, "value", ""),
        ("rules:\n  - id: r\n    when: max(prompt.harm) > 0.9\n", 5, 5, "missing-key", ""),
        ("rules:\n" + RULE.replace("id: r", "id: R!"), 5, 9, "value", "lower-case"),
        ("rules:\n" + RULE.replace("id: r", "id: 12"), 5, 9, "type", 'in quotes: "12"'),
        ("rules:\n" + RULE.replace("max", "maxx"), 6, 11, "unknown-function", "did you mean 'max'"),
        ("rules:\n" + RULE.replace("0.9", "0.9 and\n      min(promt.x) > 1"), 7, 11, "unknown-scope", "'prompt'"),
        ("rules:\n" + RULE.replace("prompt.harm", "prompt.hram"), 6, 22, "unknown-monitor", "did you mean 'harm'"),
        ("rules:\n" + RULE + RULE, 8, 9, "duplicate-id", "policy.yaml:5:9"),
        ("rules:\n" + RULE.replace("block: {}", "steer: {vector: honesti, strength: 1.0}"), 7, 28, "unknown-vector", "'honesty'"),
        ("rules:\n" + RULE.replace("0.9", "1.0"), 6, 30, "unreachable", ""),
        ("rules:\n" + RULE.replace("0.9", "0"), None, None, None, ""),
        ("rules:\n" + RULE.replace("max(prompt.harm) > 0.9", "count(prompt.harm > 1.5) > 3"), 6, 17, "unreachable", ""),
        ("rules:\n" + RULE.replace("max(prompt.harm) > 0.9", "count(prompt.harm > .5, window=4) > 4"), 6, 47, "unreachable", ""),
        ("rules:\n" + RULE.replace("max(prompt.harm) > 0.9", "1 <= frac(prompt.harm > .5) <= 0"), 6, 42, "unreachable", "contradicts"),
        ("rules:\n" + RULE.replace("max(prompt.harm) > 0.9", "turn() < 0"), 6, 20, "unreachable", ""),
        ("rules:\n" + RULE.replace("max(prompt.harm) > 0.9", "tokens() > 512"), 6, 22, "unreachable", "0 and 512"),
        ("rules:\n" + RULE.replace("block: {}", "log: {}").replace("max(prompt.harm) > 0.9", "count(response.harm > .5) > 512"), 6, 39, "unreachable", ""),
        ("rules:\n" + RULE.replace("block: {}", "log: {}").replace("max(prompt.harm)", "mean(response.harm, window=513)"), 6, 11, "unreachable", "min="),
        ("rules:\n" + RULE.replace("block: {}", "log: {}").replace("max(prompt.harm)", "mean(conversation.harm, window=513)"), None, None, None, ""),
        ("rules:\n" + RULE + "    match: {tenants: []}\n", 8, 12, "unreachable", "tenants is empty"),
        ("rules:\n" + RULE + "    match: {metadata: {app: []}}\n", 8, 12, "unreachable", "metadata.app is empty"),
        ("rules:\n" + RULE + "    match: {tenants: [a, b], not_tenants: [b, 'a*']}\n", 8, 12, "unreachable", "takes back"),
        ("rules:\n" + RULE + "    match: {not_tenants: ['*']}\n", 8, 12, "unreachable", "takes back"),
        ("rules:\n" + RULE + "    match: {tenants: ['a*'], not_tenants: ['a?']}\n", None, None, None, ""),
        ("rules:\n" + RULE.replace("max(prompt.harm) > 0.9", "exceeds(prompt.harm, fpr=1%)"), 6, 37, "unsupported", "0.001 for 0.1 %"),
        ("tests:\n  - {name: t, given: {turn: -1}, expect: {action: allow}}\n", 5, 29, "value", ""),
        ("tests:\n  - {name: t, given: {thresholds: {harm: {1: 0.9}}}, expect: {action: allow}}\n", 5, 42, "value", "rate"),
        ("tests:\n  - {name: t, given: {thresholds: {harm: x}}, expect: {action: allow}}\n", 5, 42, "value", "for each rate"),
        ("tests:\n  - {name: t, expect: {action: allow, rules: [nope]}}\n", 5, 47, "unknown-rule", ""),
        ("tests:\n  - {name: t, given: {prompt: {harm: 0.1y3}}, expect: {action: allow}}\n", 5, 38, "value", ""),
        ("tests:\n  - {name: t, given: {prompt: {harm: 1, b: 1x2}}, expect: {action: allow}}\n", 5, 31, "value", ""),
        ("defaults: {budget: 5}\n", 4, 20, "type", ""),
        ("defaults: {budget: 5 min}\n", 4, 20, "value", ""),
        ("defaults: {holdback: 300}\n", 4, 22, "value", ""),
        ("defaults: {mode: off, mode: shadow}\n", 4, 23, "duplicate-key", ""),
    ],
)  # fmt: skip
def test_errors_say_where(body, line, col, code, hint):
    known = {**KNOWN, "max_response_tokens": 512}
    if line is None:
        policy_from_text(HEAD + body, **known)
        return
    found = problems(HEAD + body, **known)
    assert [(p.line, p.col, p.code) for p in found if p.severity == "error"] == [(line, col, code)]
    assert hint in "\n".join(map(str, found))


def test_all_problems_are_told_at_once():
    body = (
        "rules:\n" + RULE.replace("max", "maxx") + RULE.replace("id: r", "id: s").replace("prompt.", "promt.")
    )
    assert told(HEAD + body) == [(6, 11, "unknown-function"), (9, 15, "unknown-scope")]


def test_a_problem_reads_well():
    body = "rules:\n" + RULE.replace("max", "maxx")
    assert str(problems(HEAD + body)[0]) == (
        "policy.yaml:6:11: error[unknown-function]: unknown function 'maxx'\n"
        "        when: maxx(prompt.harm) > 0.9\n"
        "              ^\n"
        "    hint: did you mean 'max'? known: count, ema, exceeds, frac, last, max, mean, min, run, tokens, turn"
    )


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("just text", (1, 1, "type")),
        ("kind: Polizy", (1, 7, "unknown-value")),
        ("apiVersion: interlock/v1", (1, 1, "missing-key")),
        (
            "apiVersion: interlock/v2\nkind: Policy\nmetadata: {name: p, version: '1'}",
            (1, 13, "unknown-value"),
        ),
        (HEAD.replace("'1'", "1.10"), (3, 30, "type")),
    ],
)
def test_what_is_not_a_policy_file(text, place):
    assert told(text) == [place]


def warnings(body):
    return [(p.line, p.col, p.code) for p in policy_from_text(HEAD + body).warnings]


def test_doubts_are_warnings():
    response = RULE.replace("prompt", "response")
    tested = "tests:\n  - {name: t, given: {%s: {harm: 0.95}}, expect: {action: block, rules: [r]}}\n"
    assert warnings("rules:\n" + RULE) == [(5, 9, "untested")]
    assert warnings("rules:\n" + RULE + tested % "prompt") == []
    assert warnings("rules:\n" + RULE + "    mode: off\n    severity: critical\n") == [
        (8, 11, "critical-off")
    ]
    assert warnings("rules:\n" + response + tested % "response") == [(7, 11, "no-holdback")]
    assert warnings("defaults: {holdback: 4}\nrules:\n" + response + tested % "response") == []
    unused = "tests:\n  - {name: t, given: {prompt: {harn: 0.95}}, expect: {action: allow, rules: [r]}}\n"
    assert warnings("rules:\n" + RULE + unused) == [(9, 32, "unused-series")]


def test_a_test_may_say_which_turn_it_is():
    rule = RULE.replace("max(prompt.harm) > 0.9", "turn() > 2 and max(conversation.harm) > 0.9")
    case = "  - {name: t%d, given: {turn: %d, response: {harm: 0.95}}, expect: {action: %s}}\n"
    tests = case % (1, 2, "allow") + case % (2, 3, "block")
    assert run_tests(policy_from_text(HEAD + "rules:\n" + rule + "tests:\n" + tests)).ok


@pytest.mark.parametrize(
    ("when", "at"),
    [
        ("max(prompt.harm) > 0.9 and max(prompt.harm) < 0.5", 57),
        ("0.9 < max(prompt.harm) < 0.5", 36),
        ("tokens() > 9 and (tokens() < 5 or tokens() == 3)", 40),
        ("max(prompt.harm) > 0.9 and not max(prompt.harm) > 0.5", 61),
    ],
)
def test_a_rule_that_contradicts_itself_is_unreachable(when, at):
    assert told(HEAD + "rules:\n" + RULE.replace("max(prompt.harm) > 0.9", when)) == [(6, at, "unreachable")]


@pytest.mark.parametrize("maturity", ["sandbox", "incubating"])
def test_only_stable_policies_block(maturity):
    head = HEAD.replace("'1'", f"'1', maturity: {maturity}")
    assert told(head + "rules:\n" + RULE) == [(7, 12, "immature-block")]
    policy_from_text(head + "rules:\n" + RULE + "    mode: shadow\n")
    policy_from_text(head + "rules:\n" + RULE + "    override: {reason: incident 4711}\n")
    assert told(head + "rules:\n" + RULE + "    override: {reason: short}\n") == [(8, 24, "value")]


def test_a_folder_is_one_policy_and_ids_are_unique_in_it(tmp_path):
    (tmp_path / "a.yaml").write_text(HEAD + "rules:\n" + RULE)
    (tmp_path / "b.yaml").write_text(HEAD + "rules:\n" + RULE.replace("id: r", "id: s"))
    assert [rule.id for rule in load_policy(tmp_path).rules] == ["r", "s"]
    (tmp_path / "b.yaml").write_text(HEAD + "rules:\n" + RULE)
    with pytest.raises(PolicyError) as caught:
        load_policy(tmp_path)
    (problem,) = caught.value.problems
    assert problem.file.endswith("b.yaml")
    assert f"{tmp_path / 'a.yaml'}:5:9" in problem.hint


@pytest.mark.parametrize(
    ("precedences", "then", "winner"),
    [
        ((0, 0), "replace", "a"),  # then the order of the files
        ((0, 1), "replace", "b"),
        ((-1, 0), "replace", "b"),
        ((1, 0), "replace", "a"),
        ((0, 9), "annotate", "a"),  # a more severe action wins over any precedence
    ],
)
def test_precedence_decides_between_equally_severe_rules_of_two_files(tmp_path, precedences, then, winner):
    for name, precedence in zip("ab", precedences, strict=True):
        action = (
            f"{{replace: {{message: from {name}}}}}" if name == "a" or then == "replace" else "{annotate: {}}"
        )
        head = HEAD.replace("'1'", f"'1', precedence: {precedence}")
        body = RULE.replace("id: r", f"id: {name}").replace("{block: {}}", action)
        (tmp_path / f"{name}.yaml").write_text(head + "rules:\n" + body)
    decider = load_policy(tmp_path).decider(Subject(), now=NOW)
    decision = decider.decide(StepScores(Phase.PROMPT, 0, 1, {"harm": [0.95]}, final=True))
    assert decision.effects[0] == Say(f"from {winner}", refusal=False)
    assert len(decision.matches) == 2


def test_precedence_decides_which_strength_a_vector_gets(tmp_path):
    for name, precedence in (("a", 0), ("b", 5)):
        steer = f"{{steer: {{vector: v, strength: {precedence}}}}}"
        head = HEAD.replace("'1'", f"'1', precedence: {precedence}")
        body = RULE.replace("id: r", f"id: {name}").replace("{block: {}}", steer)
        (tmp_path / f"{name}.yaml").write_text(head + "rules:\n" + body)
    decider = load_policy(tmp_path).decider(Subject(), now=NOW)
    decision = decider.decide(StepScores(Phase.PROMPT, 0, 1, {"harm": [0.95]}, final=True))
    assert decision.effects[0] == Steer("b", "v", 5.0, 0)


def test_exceptions_have_no_precedence(tmp_path):
    (tmp_path / "a.yaml").write_text(HEAD + "rules:\n" + RULE)
    (tmp_path / "e.yaml").write_text(exceptions().replace("'1'", "'1', precedence: 1"))
    with pytest.raises(PolicyError, match="unknown key 'precedence'"):
        load_policy(tmp_path)


def test_an_exception_that_applies_to_nobody_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text(HEAD + "rules:\n" + RULE)
    (tmp_path / "e.yaml").write_text(exceptions().replace("[red*]", "[red], not_tenants: [red]"))
    with pytest.raises(PolicyError, match="applies to nobody"):
        load_policy(tmp_path)


def test_an_empty_folder(tmp_path):
    with pytest.raises(PolicyError, match=r"no \*\.yaml file"):
        load_policy(tmp_path)


def exceptions(mode="shadow", rules="[r]", expires="2026-12-15T00:00:00Z"):
    return (
        HEAD.replace("kind: Policy", "kind: Exceptions")
        + f"exceptions:\n  - id: E-1\n    rules: {rules}\n    mode: {mode}\n    reason: a good reason\n"
        + f"    approved_by: [me]\n    match: {{tenants: [red*]}}\n    starts: 2026-11-20T00:00:00Z\n    expires: {expires}\n"
    )


@pytest.mark.parametrize(
    ("now", "tenant", "waived"),
    [
        (datetime(2026, 11, 19, tzinfo=UTC), "redteam", False),
        (datetime(2026, 11, 20, tzinfo=UTC), "redteam", True),
        (datetime(2026, 12, 14, 23, 59, tzinfo=UTC), "redteam", True),
        (datetime(2026, 12, 15, tzinfo=UTC), "redteam", False),
        (datetime(2026, 12, 1, tzinfo=UTC), "acme", False),
    ],
)
def test_exceptions_hold_for_their_subject_and_time(tmp_path, now, tenant, waived):
    (tmp_path / "a.yaml").write_text(HEAD + "rules:\n" + RULE)
    (tmp_path / "e.yaml").write_text(exceptions("off"))
    decider = load_policy(tmp_path).decider(Subject(tenant=tenant), now=now)
    assert decider.waivers == (("E-1",) if waived else ())
    assert decider.monitors == (frozenset() if waived else {(Phase.PROMPT, "harm")})


def test_exceptions_cannot_switch_off_what_is_critical_or_unknown(tmp_path):
    (tmp_path / "a.yaml").write_text(HEAD + "rules:\n" + RULE + "    severity: critical\n")
    for text, code in [(exceptions("off"), "critical-off"), (exceptions(rules="[q]"), "unknown-rule")]:
        (tmp_path / "e.yaml").write_text(text)
        with pytest.raises(PolicyError) as caught:
            load_policy(tmp_path)
        assert [p.code for p in caught.value.problems if p.severity == "error"] == [code]


def test_an_exception_never_strengthens_a_rule(tmp_path):
    (tmp_path / "a.yaml").write_text(HEAD + "rules:\n" + RULE + "    mode: off\n")
    (tmp_path / "e.yaml").write_text(exceptions("shadow"))
    decider = load_policy(tmp_path).decider(Subject(tenant="redteam"), now=NOW)
    assert (decider.monitors, decider.waivers) == (frozenset(), ())


def test_a_time_without_zone_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text(HEAD + "rules:\n" + RULE)
    (tmp_path / "e.yaml").write_text(exceptions(expires="2026-12-15"))
    with pytest.raises(PolicyError, match="expires"):
        load_policy(tmp_path)


def test_rollout_buckets_are_stable_even_and_independent():
    assert bucket("rule", "acme") == bucket("rule", "acme") != bucket("other", "acme")
    inside = sum(bucket("rule", f"tenant-{i}") < 10 for i in range(5_000))
    assert 400 < inside < 600
    both = sum(bucket("a", f"t{i}") < 50 and bucket("b", f"t{i}") < 50 for i in range(5_000))
    assert 1_150 < both < 1_350


def test_the_rest_of_a_rollout_runs_in_shadow():
    policy = policy_from_text(HEAD + "rules:\n" + RULE + "    rollout: {percent: 30, by: request}\n")
    (rule,) = policy.rules
    modes = [rule.mode_for(Subject(request_id="chosen", decision_id=f"d{i}"), None) for i in range(1_000)]
    assert 250 < modes.count(Mode.ENFORCE) < 350
    assert modes.count(Mode.SHADOW) == 1_000 - modes.count(Mode.ENFORCE)


@pytest.mark.parametrize(
    ("match", "subject", "covered"),
    [
        ("{}", Subject(), True),
        ("{models: [llama-*]}", Subject(model="llama-3"), True),
        ("{models: [llama-*]}", Subject(model="qwen"), False),
        ("{tenants: [a, b], not_tenants: [b]}", Subject(tenant="b"), False),
        ("{endpoints: [chat]}", Subject(endpoint="completions"), False),
        ("{metadata: {app: [in*]}}", Subject(metadata={"app": "intake"}), True),
        ("{metadata: {app: [in*]}}", Subject(metadata={"app": "out"}), False),
        ("{metadata: {app: ['*']}}", Subject(), False),
    ],
)
def test_match(match, subject, covered):
    policy = policy_from_text(HEAD + "rules:\n" + RULE + f"    match: {match}\n")
    assert bool(policy.decider(subject, now=NOW).monitors) is covered


def test_the_schema_knows_every_action():
    then = json_schema()["$defs"]["Then"]["properties"]
    assert set(then) == {"block", "replace", "escalate", "steer", "annotate", "log"}


def test_known_misses():
    body = "rules:\n" + RULE + "tests:\n"
    for score, expected in [("0.2", Status.KNOWN_MISS), ("0.95", Status.FIXED)]:
        case = f"  - {{name: t, known_miss: true, given: {{prompt: {{harm: {score}}}}}, expect: {{action: block}}}}\n"
        (result,) = run_tests(policy_from_text(HEAD + body + case)).results
        assert (result.status, result.ok) == (expected, True)


def test_a_failing_test_says_what_differs():
    case = (
        "tests:\n  - {name: t, given: {prompt: {harm: 0.2}}, expect: {action: block, rules: [r], token: 0}}\n"
    )
    (result,) = run_tests(policy_from_text(HEAD + "rules:\n" + RULE + case)).results
    assert not result.ok
    assert result.differences == (
        "action: expected block, got allow",
        "rules: expected [r], got []",
        "token: expected 0, got None",
    )


BASES = {
    "tenants": (HERE / "tenants.yaml").read_text(),
    "language": HEAD.replace("'1'", "'1', precedence: 2")
    + """rules:
  - {id: a, when: "exceeds(prompt.harm, fpr=0.001) or tokens() > 9", then: {block: {}}, override: {reason: a good one}}
  - {id: b, when: "not exceeds(prompt.harm, fpr=0.001) and turn() > 2", then: {steer: {vector: honesty, strength: 1}}}
  - {id: c, when: "run(conversation.harm > 0.5, window=9) >= 4", then: {log: {}}, match: {not_tenants: [x]}}
tests:
  - name: t
    given: {turn: 3, thresholds: {harm: {0.001: 0.9, 1e-2: 0.5}}, prompt: {harm: 0.95}}
    expect: {action: block, rules: [a]}
""",
}


@pytest.mark.parametrize("name", BASES)
@settings(max_examples=60)
@given(st.data(), st.integers(0, 12), st.text(max_size=6) | st.sampled_from(["-", "9", "e", "{", "()", "%"]))
def test_any_damage_to_a_file_is_told_cleanly(name, data, length, inserted):
    base = BASES[name]
    at = data.draw(st.integers(0, len(base)))
    known = KNOWN if name == "language" else {}
    try:
        run_tests(policy_from_text(base[:at] + inserted + base[at + length :], **known))
    except PolicyError as error:
        assert all(p.line >= 1 and p.col >= 1 for p in error.problems)  # noqa: PT017


# --- pins


PINNED = HEAD + "rules:\n" + RULE + "    pins: [%s]\n"
OLDER = {"harm": replace(HARM, version="2")}


def test_a_pinned_version_that_is_not_installed_is_refused_with_the_one_that_is():
    (problem,) = problems(PINNED % "harm@3", monitors=OLDER)
    assert (problem.line, problem.col, problem.code) == (8, 12, "other-version")
    assert problem.message == "the rule is for harm@3, and harm@2 is installed"
    policy_from_text(PINNED % "harm@2", monitors=OLDER)
    policy_from_text(PINNED % "harm@3")  # where monitors are not known, they are not checked


def test_a_pin_of_what_the_rule_does_not_read_is_a_mistake():
    (problem,) = problems(PINNED % "harn@3")
    assert (problem.code, "did you mean 'harm'" in problem.hint) == ("unused-pin", True)
    assert told(PINNED % "harm")[0][2] == "value"
