"""Enforced actions need evidence, or a reason in writing that is then in every match."""

import pytest

from guard.errors import PolicyError
from guard.policy import policy_from_text
from guard.replay import replay
from guard.types import Budget, Gate, MonitorInfo, Scope, Subject, VectorInfo
from tests.unit.guard.test_policy import HEAD, NOW

BUDGET = Budget(Scope.PROMPT, 0.01, 0.5, certified=True)
MONITORS = {
    "good": MonitorInfo("good", 0.0, 1.0, (BUDGET,), 500),
    "few": MonitorInfo("few", 0.0, 1.0, (BUDGET,), 200),
    "bare": MonitorInfo("bare", 0.0, 1.0),
}
VECTORS = {
    "causal": VectorInfo("causal", steerable=True, verdict="causal"),
    "readout": VectorInfo("readout", steerable=False, verdict="readout"),
    "untested": VectorInfo("untested"),
}
BLOCK, REPLACE = "block: {}", "replace: {message: no}"


def load(when, then, more="", monitors=MONITORS, head=HEAD):
    text = f"{head}rules:\n  - id: r\n    when: {when}\n    then: {{{then}}}\n{more}"
    return policy_from_text(text, monitors=monitors, vectors=VECTORS if monitors else None)


def refused(*args, **options):
    with pytest.raises(PolicyError) as caught:
        load(*args, **options)
    (problem,) = [p for p in caught.value.problems if p.severity == "error"]
    assert (problem.line, problem.col) == (7, 12)
    return problem


def steer(vector):
    return f"steer: {{vector: {vector}, strength: 1.0}}"


@pytest.mark.parametrize("then", [BLOCK, REPLACE])
@pytest.mark.parametrize(
    ("when", "lacking"),
    [
        ("max(prompt.bare) > 0.6", "prompt.bare"),
        ("max(prompt.few) > 0.6", "prompt.few"),  # too few requests for its budget
        ("max(response.good) > 0.6", "response.good"),  # calibrated for the prompt
        ("max(conversation.good) > 0.6", "conversation.good"),
        ("max(prompt.good) > 0.6 and not max(prompt.bare) > 0.6", "prompt.bare"),
        ("max(prompt.bare) > 0.6 or last(response.bare) > 0.6", "prompt.bare, response.bare"),
    ],
)
def test_to_end_a_response_takes_calibrated_monitors(when, lacking, then):
    problem = refused(when, then)
    assert problem.code == "uncalibrated"
    assert f"without a certified budget: {lacking}" in problem.message
    assert "override: {reason: ...}" in problem.hint
    load(when, then, "    mode: shadow\n")
    load(when, "annotate: {}")


def test_calibrated_monitors_and_scalars_pass():
    assert load("max(prompt.good) > 0.6 and turn() < 3", BLOCK).rules[0].overridden == ()


@pytest.mark.parametrize(("vector", "told"), [("readout", "verdict 'readout'"), ("untested", "not tested")])
def test_to_steer_takes_a_causal_verdict(vector, told):
    problem = refused("max(prompt.bare) > 0.6", steer(vector))
    assert problem.code == "not-causal"
    assert told in problem.message
    load("max(prompt.bare) > 0.6", steer(vector), "    mode: shadow\n")


def test_a_vector_with_a_verdict_that_allows_it_passes():
    assert load("max(prompt.bare) > 0.6", steer("causal")).rules[0].overridden == ()


@pytest.mark.parametrize(
    ("when", "then", "gates"),
    [
        ("max(prompt.bare) > 0.6", BLOCK, (Gate.CALIBRATION,)),
        ("max(prompt.bare) > 0.6", steer("untested"), (Gate.CAUSALITY,)),
        ("max(prompt.good) > 0.6", BLOCK, ()),
    ],
)
def test_a_written_reason_overrides_and_is_in_every_match(when, then, gates):
    policy = load(when, then, "    override: {reason: incident 4711}\n")
    assert policy.rules[0].overridden == gates
    series = {name: [0.9] for _, name in policy.monitors}
    (match,) = replay(policy, Subject(), series, {}, NOW).matches
    assert match.override == "incident 4711"


def test_every_gate_that_an_override_is_for_is_known():
    head = HEAD.replace("'1'", "'1', maturity: sandbox")
    policy = load("max(prompt.bare) > 0.6", BLOCK, "    override: {reason: incident 4711}\n", head=head)
    assert policy.rules[0].overridden == (Gate.MATURITY, Gate.CALIBRATION)


INVALID = "its causal card found that it does not read the concept (verdict 'invalid')"
BARRED = {
    **MONITORS,
    "invalid": MonitorInfo("invalid", 0.0, 1.0, (BUDGET,), 500, barred=INVALID),
    "unlike": MonitorInfo("unlike", 0.0, 1.0, (BUDGET,), 500, barred="its SAE failed"),
}


@pytest.mark.parametrize("then", [BLOCK, REPLACE, steer("causal"), "escalate: {to: judge}"])
@pytest.mark.parametrize(
    "when",
    ["max(prompt.invalid) > 0.6", "max(prompt.good) > 0.6 and not max(prompt.invalid) > 0.6", "exceeds(prompt.invalid, fpr=0.01)"],
)  # fmt: skip
def test_a_barred_monitor_may_only_log_or_annotate(when, then):
    problem = refused(when, then, monitors=BARRED)
    assert problem.code == "barred-monitor"
    assert problem.message.endswith(f"monitor 'invalid', which must not act: {INVALID}")
    assert "override: {reason: ...}" in problem.hint
    load(when, then, "    mode: shadow\n", monitors=BARRED)
    for harmless in ("log: {}", "annotate: {}"):
        load(when, harmless, monitors=BARRED)
    policy = load(when, then, "    override: {reason: incident 4711}\n", monitors=BARRED)
    assert policy.rules[0].overridden == (Gate.VALIDITY,)


def test_each_barred_monitor_is_told_and_an_override_counts_the_gate_once():
    when = "max(prompt.invalid) > 0.6 or max(prompt.unlike) > 0.6"
    with pytest.raises(PolicyError) as caught:
        load(when, BLOCK, monitors=BARRED)
    told = [p.message for p in caught.value.problems if p.code == "barred-monitor"]
    assert [message.rsplit(": ", 1)[1] for message in told] == [INVALID, "its SAE failed"]
    policy = load(when, BLOCK, "    override: {reason: incident 4711}\n", monitors=BARRED)
    assert policy.rules[0].overridden == (Gate.VALIDITY,)


def test_a_budget_without_threshold_cannot_be_overridden():
    with pytest.raises(PolicyError, match="uncalibrated"):
        load("exceeds(prompt.bare, fpr=0.01)", BLOCK, "    override: {reason: incident 4711}\n")


def test_without_monitors_nothing_is_known_and_nothing_refused():
    assert load("max(prompt.bare) > 0.6", BLOCK, monitors=None).rules[0].overridden == ()
