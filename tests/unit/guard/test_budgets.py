"""Budgets become thresholds, or say why not and what they would need."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.budgets import is_calibrated, needed_requests
from guard.errors import PolicyError
from guard.policy import policy_from_text
from guard.policy_test import run_tests
from guard.types import Budget, MonitorInfo, Phase, Scope, StepScores, Stop, Subject
from tests.unit.guard.test_policy import HEAD, NOW

PROMPT, RESPONSE, CONVERSATION = Scope


def harm(*budgets, num_benign=5_000):
    found = tuple(Budget(scope, fpr, threshold, certified=fpr != 0.0001) for scope, fpr, threshold in budgets)
    return {"harm": MonitorInfo("harm", 0.0, 1.0, found, num_benign)}


CALIBRATED = harm((PROMPT, 0.01, 0.7), (PROMPT, 0.001, 0.9), (PROMPT, 0.0001, 0.95))


def rule(when, then="block: {}", tests=""):
    return HEAD + f"rules:\n  - id: r\n    when: {when}\n    then: {{{then}}}\n{tests}"


def told(when, monitors, **options):
    with pytest.raises(PolicyError) as caught:
        policy_from_text(rule(when, "log: {}"), monitors=monitors, **options)
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize(("fpr", "expected"), [(0.001, 2_995), (0.01, 299), (0.0005, 5_990)])
def test_how_many_benign_requests_certify_a_budget(fpr, expected):
    assert needed_requests(fpr, 0.95) == expected


@given(st.floats(1e-6, 0.5), st.floats(0.5, 0.999))
def test_the_number_needed_is_the_smallest_that_does(fpr, confidence):
    n = needed_requests(fpr, confidence)
    assert (1 - fpr) ** n <= (1 - confidence) * (1 + 1e-9)
    assert (1 - fpr) ** (n - 1) > (1 - confidence) * (1 - 1e-9)


def action(policy, score):
    decider = policy.decider(Subject(), now=NOW)
    decision = decider.decide(StepScores(Phase.PROMPT, 0, 2, {"harm": [0.1, score]}, final=True))
    return isinstance(decision.effects[-1], Stop), decider.outcome


@pytest.mark.parametrize(("fpr", "threshold"), [("0.01", 0.7), ("1e-3", 0.9)])
def test_a_budget_is_the_threshold_of_its_calibration(fpr, threshold):
    policy = policy_from_text(rule(f"exceeds(prompt.harm, fpr={fpr})"), monitors=CALIBRATED)
    assert action(policy, threshold)[0] is False  # not above it
    stopped, outcome = action(policy, threshold + 0.01)
    assert stopped
    assert outcome.matches[0].values == {"max(prompt.harm)": threshold + 0.01}


def test_another_calibration_is_another_policy():
    text = rule("exceeds(prompt.harm, fpr=0.01)")
    one, other = CALIBRATED, harm((PROMPT, 0.01, 0.71))
    digests = [policy_from_text(text, monitors=monitors).digest for monitors in (one, one, other, None)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    plain = rule("max(prompt.harm) > 0.8")
    assert policy_from_text(plain, monitors=one).digest == policy_from_text(plain).digest


def test_a_monitor_without_calibration_has_no_budgets():
    problem = told("exceeds(prompt.harm, fpr=0.01)", harm())
    assert (problem.line, problem.col, problem.code) == (6, 11, "uncalibrated")
    assert "not calibrated for the prompt" in problem.message
    assert "max(prompt.harm) > 0.9" in problem.hint


def test_a_calibration_of_another_scope_is_none_and_is_told():
    problem = told("exceeds(response.harm, fpr=0.01)", CALIBRATED)
    assert problem.code == "uncalibrated"
    assert "prompt: 0.0001 (not certified), 0.001, 0.01" in problem.hint


def test_a_budget_that_is_not_in_the_table_names_those_that_are():
    problem = told("exceeds(prompt.harm, fpr=0.002)", CALIBRATED)
    assert (problem.line, problem.col, problem.code) == (6, 36, "unknown-budget")
    assert problem.hint == "known: 0.0001 (not certified), 0.001, 0.01"


def test_too_few_benign_requests_are_refused_with_the_number_needed():
    problem = told("exceeds(prompt.harm, fpr=0.001)", harm((PROMPT, 0.001, 0.9), num_benign=800))
    assert (problem.line, problem.col, problem.code) == (6, 36, "uncertified")
    assert "800 benign requests" in problem.message
    assert "at least 2,995" in problem.message


def test_a_budget_that_rests_on_other_requests_than_the_monitors_others_is_judged_by_those():
    found = Budget(RESPONSE, 0.01, 0.7, certified=True, num_benign=120)
    monitors = {"harm": MonitorInfo("harm", 0.0, 1.0, (found,), num_benign=5_000)}
    problem = told("exceeds(response.harm, fpr=0.01)", monitors)
    assert problem.code == "uncertified"
    assert "120 benign requests in the response" in problem.message
    enough = Budget(RESPONSE, 0.01, 0.7, certified=True, num_benign=299)
    assert is_calibrated(MonitorInfo("harm", 0.0, 1.0, (enough,), num_benign=10), RESPONSE)


def test_a_card_that_does_not_certify_a_budget_is_believed():
    problem = told("exceeds(prompt.harm, fpr=0.0001)", harm((PROMPT, 0.0001, 0.9), num_benign=50_000))
    assert problem.code == "uncertified"
    assert "does not certify fpr=0.0001" in problem.message


def test_a_threshold_that_no_score_exceeds_is_unreachable():
    assert told("exceeds(prompt.harm, fpr=0.01)", harm((PROMPT, 0.01, 1.0))).code == "unreachable"


@pytest.mark.parametrize(
    ("scopes", "calibrated"),
    [
        ([PROMPT], {PROMPT}),
        ([PROMPT, RESPONSE], {PROMPT, RESPONSE, CONVERSATION}),
        ([CONVERSATION], {CONVERSATION}),
    ],
)
def test_which_scopes_a_calibration_covers(scopes, calibrated):
    (info,) = harm(*((scope, 0.01, 0.5) for scope in scopes)).values()
    assert {scope for scope in Scope if is_calibrated(info, scope)} == calibrated


# --- tests in a policy file


TESTS = """tests:
  - name: above
    given: {prompt: {harm: "0.1 0.95"}%s}
    expect: {action: %s}
"""


def results(monitors, thresholds, expected, when="exceeds(prompt.harm, fpr=0.001)"):
    given = f", thresholds: {{harm: {thresholds}}}" if thresholds else ""
    policy = policy_from_text(rule(when, tests=TESTS % (given, expected)), monitors=monitors)
    return policy, run_tests(policy).results[0]


@pytest.mark.parametrize("monitors", [None, CALIBRATED])
@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [("0.93", "block"), ("0.97", "allow"), ("{0.01: 0.2, 0.001: 0.97}", "allow"), ("{1e-3: 0.2}", "block")],
)
def test_a_test_that_gives_thresholds_means_the_same_everywhere(monitors, thresholds, expected):
    _, result = results(monitors, thresholds, expected)
    assert result.ok, result


def test_without_thresholds_the_calibrated_ones_count():
    assert results(CALIBRATED, "", "block")[1].ok


def test_without_thresholds_and_calibration_the_budget_is_unknown_and_that_is_told():
    policy, result = results(None, "", "block")
    assert not result.ok
    assert "exceeds(prompt.harm, fpr=0.001) is unknown here" in str(result)
    assert [(p.code, p.line) for p in policy.warnings] == [("untested", 5), ("no-threshold", 10)]
    negated, result = results(None, "", "allow", when="not exceeds(prompt.harm, fpr=0.001)")
    assert result.ok  # not unknown is unknown, too
    assert negated.monitors == {(Phase.PROMPT, "harm")}


def test_a_threshold_that_no_rule_asks_for_is_doubtful():
    given = ", thresholds: {harn: 0.9}"
    text = rule("exceeds(prompt.harm, fpr=0.001)", tests=TESTS % (given, "allow"))
    codes = {p.code: p.hint for p in policy_from_text(text).warnings}
    assert "did you mean 'harm'" in codes["unused-threshold"]
