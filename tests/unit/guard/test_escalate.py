"""Rules that escalate: what waits, what an answer does, and that none is taken for a pass unless the policy says so."""

import pytest

from guard.coverage import coverage
from guard.diff import diff
from guard.errors import DeciderError
from guard.explain import explain
from guard.layout import formatted
from guard.policy import policy_from_text
from guard.policy_test import Status, run_tests
from guard.types import (
    Advice,
    Answer,
    Emit,
    Escalate,
    Hold,
    MonitorInfo,
    Phase,
    Say,
    Severity,
    Steer,
    Stop,
    StopReason,
    Subject,
)
from tests.unit.guard.test_decider import NAN, NOW, UNAVAILABLE, decider, prompt, respond, started
from tests.unit.guard.test_policy import HEAD, told

ASK = "max(response.a) > 0.5 -> escalate: {to: judge, message: no}"
REFUSED = (Say("no", refusal=True), Stop(StopReason.BLOCKED))
NO_ANSWER = [Answer.TIMEOUT, Answer.ERROR, Answer.BUSY, Answer.BREAKER_OPEN]


def resolved(d, answer, *rules):
    return d.resolve({rule: Advice(answer) for rule in rules or ["r0"]})


def test_a_match_asks_and_nothing_leaves_before_the_answer():
    d = started(ASK)
    assert respond(d, a=0.1).effects == (Emit(1),)
    assert respond(d, a=0.9).effects == (Escalate("r0", "judge", 2.0),)
    assert d.pending
    assert resolved(d, Answer.ALLOW).effects == (Emit(2),)
    assert (d.outcome.verdict, d.outcome.token) == ("escalate", 1)
    assert respond(d, a=0.9).effects == (Emit(3),)  # it asks once
    assert d.finish().effects == (Emit(3),)


def test_an_answer_that_blocks_ends_the_response_as_a_block_would():
    d = started(ASK, "max(response.b) > 0.5 -> escalate: {to: judge}")
    respond(d, a=0.1, b=0.9)
    resolved(d, Answer.ALLOW, "r1")
    respond(d, a=0.9, b=0.1)
    decision = resolved(d, Answer.BLOCK)
    assert decision.effects == REFUSED
    (opinion,) = decision.opinions
    assert (opinion.rule, opinion.to, opinion.allowed, opinion.phase, opinion.token) == (
        "r0",
        "judge",
        False,
        Phase.RESPONSE,
        1,
    )
    assert d.ended
    assert (d.outcome.action, d.outcome.phase, d.outcome.token) == (Severity.BLOCK, Phase.RESPONSE, 1)
    assert [o.allowed for o in d.outcome.opinions] == [True, False]
    with pytest.raises(DeciderError, match="after the stop by rule 'r0'"):
        respond(d, a=0.1, b=0.1)


@pytest.mark.parametrize("answer", NO_ANSWER)
def test_no_answer_is_taken_as_the_rule_says(answer):
    d = started(ASK)
    respond(d, a=0.9)
    assert resolved(d, answer).effects == REFUSED
    d = started("max(response.a) > 0.5 -> escalate: {to: judge, on_timeout: allow}")
    respond(d, a=0.9)
    assert resolved(d, answer).effects == (Emit(1),)


def test_nothing_goes_on_before_the_answer():
    d = started(ASK)
    with pytest.raises(DeciderError, match="no second opinion was asked for"):
        resolved(d, Answer.ALLOW)
    respond(d, a=0.9)
    with pytest.raises(DeciderError, match=r"decide\(\) before resolve\(\)"):
        respond(d, a=0.1)
    with pytest.raises(DeciderError, match=r"finish\(\) before resolve\(\)"):
        d.finish()
    with pytest.raises(DeciderError, match="asked for: r0; got: r1"):
        resolved(d, Answer.ALLOW, "r1")
    with pytest.raises(DeciderError, match="asked for: r0; got: r0, r1"):
        resolved(d, Answer.ALLOW, "r0", "r1")
    resolved(d, Answer.ALLOW)


def test_at_the_end_of_the_prompt():
    d = decider("max(prompt.a) > 0.5 -> escalate: {to: judge, deadline: 500ms}")
    assert prompt(d, final=False, a=[0.9]).effects == (Hold(),)
    assert prompt(d, a=[0.1]).effects == (Escalate("r0", "judge", 0.5),)
    assert resolved(d, Answer.ALLOW).effects == (Hold(),)
    assert respond(d).effects == (Emit(1),)


@pytest.mark.parametrize("ends", ["block: {}", "replace: {message: so}"])
def test_what_ends_the_response_anyway_asks_nobody(ends):
    d = started(ASK, f"max(response.a) > 0.5 -> {ends}")
    effects = respond(d, a=0.9).effects
    assert isinstance(effects[-1], Stop)
    assert not d.pending
    assert [match.rule for match in d.outcome.matches] == ["r0", "r1"]


def test_a_broken_score_at_the_same_token_asks_nobody():
    assert respond(started(ASK, "max(response.b) > 0.5 -> log: {}"), a=0.9, b=NAN).effects == UNAVAILABLE


def test_what_else_is_true_waits_and_acts_if_the_response_goes_on():
    steer = "max(response.a) > 0.5 -> steer: {vector: v, strength: 1.0}"
    d = started(ASK, steer)
    assert respond(d, a=0.9).effects == (Escalate("r0", "judge", 2.0),)
    assert resolved(d, Answer.ALLOW).effects == (Steer("r1", "v", 1.0, 0), Emit(1))
    d = started(ASK, steer)
    respond(d, a=0.9)
    assert resolved(d, Answer.BLOCK).effects == REFUSED


def test_all_rules_that_escalate_ask_and_the_first_that_blocks_speaks():
    other = "max(response.a) > 0.5 -> escalate: {to: other, message: never}"
    d = started(ASK, other)
    assert respond(d, a=0.9).effects == (Escalate("r0", "judge", 2.0), Escalate("r1", "other", 2.0))
    allow, block = Advice(Answer.ALLOW), Advice(Answer.BLOCK)
    assert d.resolve({"r0": allow, "r1": block}).effects[0] == Say("never", refusal=True)
    d = started(ASK, other)
    respond(d, a=0.9)
    assert d.resolve({"r0": block, "r1": block}).effects == REFUSED


def test_what_was_judged_is_held_back_and_limited_as_for_a_block():
    d = started("max(response.a) > 0.5 -> escalate: {to: judge, at_most_delivered: 2}", holdback=1)
    assert [respond(d, a=0.1).effects for _ in range(5)] == [
        (Hold(),),
        (Emit(1),),
        (Emit(2),),
        (Hold(),),
        (Hold(),),
    ]
    respond(d, a=0.9)
    assert resolved(d, Answer.ALLOW).effects == (Hold(),)
    assert d.finish().effects == (Emit(6),)


@pytest.mark.parametrize("weaker", ["mode: shadow", "rollout: {percent: 0}"])
def test_a_rule_in_shadow_asks_nobody(weaker):
    d = started(f"{ASK} -> {weaker}")
    assert not d.escalates
    assert respond(d, a=0.9).effects == (Emit(1),)
    assert [match.action for match in d.outcome.shadow] == ["escalate"]
    assert d.outcome.verdict == "allow"


# --- loading


RULE = "rules:\n  - id: r\n    when: max(prompt.harm) > 0.9\n    then: {escalate: {%s}}\n"


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ("", "missing-key"),
        ("to: judge, deadline: 2", "type"),
        ("to: judge, deadline: 2m", "value"),
        ("to: judge, deadline: 0s", "value"),
        ("to: judge, deadline: 61s", "value"),
        ("to: judge, on_timeout: pass", "unknown-value"),
        ("to: judge, url: 'http://x'", "unknown-key"),
    ],
)
def test_settings_that_are_wrong(settings, code):
    (problem,) = told(HEAD + RULE % settings)
    assert problem[2] == code


def test_a_target_that_the_server_does_not_have_is_refused_at_its_place():
    text = HEAD + RULE % "to: jugde"
    assert told(text, targets=["judge"]) == [(7, 27, "unknown-target")]
    assert told(text, targets=[]) == [(7, 27, "unknown-target")]
    policy_from_text(text)  # where targets are not known, they are not checked
    policy_from_text(text, targets=["jugde"])


def test_to_escalate_takes_a_stable_policy_and_no_calibration():
    bare = {"harm": MonitorInfo("harm", 0.0, 1.0)}
    text = HEAD + RULE % "to: judge"
    policy_from_text(text, monitors=bare)
    immature = text.replace("version: '1'", "version: '1', maturity: sandbox")
    assert [code for _, _, code in told(immature, monitors=bare)] == ["immature-block"]


def test_two_targets_for_one_condition_are_no_duplicate():
    text = HEAD + RULE % "to: judge" + (RULE % "to: other").removeprefix("rules:\n").replace("id: r", "id: s")
    assert "duplicate-condition" not in {problem.code for problem in policy_from_text(text).warnings}
    same = policy_from_text(text.replace("other", "judge"))
    assert "duplicate-condition" in {problem.code for problem in same.warnings}


def test_tools_know_the_action():
    policy = policy_from_text(HEAD + RULE % "to: judge, deadline: 500ms")
    words = str(explain(policy, policy.rule("r"), NOW))
    assert "judge is asked for a second opinion" in words
    assert "No answer within 500ms, or an error, is taken for a block" in words
    opened = policy_from_text(HEAD + RULE % "to: judge, deadline: 500ms, on_timeout: allow")
    assert [str(change) for change in diff(policy, opened)] == ["rule r: escalate.on_timeout block -> allow"]
    untidy = HEAD + RULE % "on_timeout: block, to: judge"
    assert "{to: judge, on_timeout: block}" in formatted(untidy, "p.yaml")


# --- tests inside policies


CASE = "  - name: t\n    given: {prompt: {harm: '0.95'}%s}\n    expect: {action: %s}\n"


def results(given, action):
    return run_tests(
        policy_from_text(HEAD + RULE % "to: judge" + "tests:\n" + CASE % (given, action))
    ).results


@pytest.mark.parametrize(
    ("answer", "action"), [("allow", "escalate"), ("block", "block"), ("timeout", "block")]
)
def test_a_test_says_what_the_second_opinion_is(answer, action):
    (result,) = results(f", second_opinion: {{judge: {answer}}}", action)
    assert result.status is Status.PASSED


@pytest.mark.parametrize("action", ["escalate", "block"])
def test_a_test_that_does_not_say_fails_whatever_it_expects(action):
    (result,) = results("", action)
    assert result.status is Status.FAILED
    assert "rule 'r' asks 'judge'; write what it answers" in result.differences[0]
    assert "second_opinion: {judge: block}" in result.differences[0]


def test_an_opinion_that_nobody_asks_for_is_doubtful():
    text = HEAD + RULE % "to: judge" + "tests:\n" + CASE % (", second_opinion: {jugde: block}", "block")
    (problem,) = [p for p in policy_from_text(text).warnings if p.code == "unused-opinion"]
    assert "did you mean 'judge'" in problem.hint


def test_coverage_tells_which_answers_no_test_plays():
    text = HEAD + RULE % "to: judge" + "tests:\n" + CASE % (", second_opinion: {judge: block}", "block")
    reached = coverage(policy_from_text(text))
    assert reached.answers == (("r", "allow"), ("r", "timeout"))
    assert not reached.complete


def test_an_outcome_without_an_answer_goes_on_as_far_as_it_is_known():
    from guard.replay import replay  # noqa: PLC0415

    policy = policy_from_text(HEAD + RULE % "to: judge")
    outcome = replay(policy, Subject(), {"harm": [0.95]}, {}, NOW, num_response=3)
    assert outcome.verdict == "escalate"
    assert [opinion.advice.answer for opinion in outcome.opinions] == [Answer.UNKNOWN]
