"""Rules in each other's way, and thresholds beside the calibrated ones: warnings at load."""

import pytest

from guard.policy import load_policy, policy_from_text
from guard.types import Budget, MonitorInfo, Scope
from tests.unit.guard.test_policy import HEAD

BLOCK, NOTE, LOG = "block: {}", "annotate: {}", "log: {}"


def rules(*given):
    """Each rule: (when, then, further keys)."""
    lines = ["rules:"]
    for i, (when, then, *more) in enumerate(given):
        lines += [f"  - id: r{i}", f"    when: {when}", f"    then: {{{then}}}", *(f"    {m}" for m in more)]
    return HEAD + "\n".join(lines) + "\n"


def doubts(*given, **known):
    found = policy_from_text(rules(*given), **known).warnings
    return [(p.line, p.code) for p in found if p.code not in {"untested", "no-holdback"}]


WIDE, NARROW = "max(prompt.a) > 0.6", "max(prompt.a) > 0.9"


def test_a_rule_that_a_block_always_forestalls_is_shadowed():
    assert doubts((WIDE, BLOCK), (NARROW, NOTE)) == [(9, "shadowed")]
    (warning,) = [
        p for p in policy_from_text(rules((WIDE, BLOCK), (NARROW, NOTE))).warnings if p.code == "shadowed"
    ]
    assert "rule 'r0' has already matched and does block" in warning.message
    assert "policy.yaml:6:11" in warning.hint


@pytest.mark.parametrize(
    ("given", "shadowed"),
    [
        ([(NARROW, NOTE), (WIDE, BLOCK)], [0]),  # the order of unequal actions is nothing
        ([(WIDE, BLOCK), (NARROW, "replace: {message: m}")], [1]),
        ([(WIDE, BLOCK), (NARROW, BLOCK)], [1]),
        ([(NARROW, BLOCK), (WIDE, BLOCK)], []),  # the second blocks more, later in the file
        ([(WIDE, BLOCK), (NARROW, BLOCK), ("max(prompt.a) > 0.95", NOTE)], [1, 2]),
        ([("count(response.a > 0.5) >= 2", BLOCK), ("count(response.a > 0.9) >= 3", NOTE)], [1]),
        ([(f"{WIDE} or max(prompt.b) > 0.1", BLOCK), (NARROW, NOTE)], [1]),
        ([(WIDE, BLOCK), (f"{NARROW} and max(response.b) > 0.1", NOTE)], [1]),
        ([(NARROW, BLOCK), (f"{WIDE} and not {NARROW}", NOTE)], []),  # a grey zone
        ([(WIDE, BLOCK), (NARROW, LOG)], []),  # it acts by being recorded
        ([(WIDE, "steer: {vector: v, strength: 1.0}"), (NARROW, NOTE)], []),  # the response goes on
        ([(WIDE, BLOCK, "mode: shadow"), (NARROW, NOTE)], []),
        ([(WIDE, BLOCK), (NARROW, NOTE, "mode: shadow")], []),
        ([(WIDE, BLOCK, "rollout: {percent: 50}"), (NARROW, NOTE)], []),
        ([(WIDE, BLOCK, "match: {tenants: [x]}"), (NARROW, NOTE)], []),
        ([(WIDE, BLOCK, "match: {tenants: [x]}"), (NARROW, NOTE, "match: {tenants: [x]}")], [1]),
        ([(WIDE, BLOCK), (NARROW, NOTE, "match: {tenants: [x]}")], [1]),
    ],
)
def test_which_rules_are_shadowed(given, shadowed):
    found = [p for p in policy_from_text(rules(*given)).warnings if p.code == "shadowed"]
    assert [int(p.message.split("'")[1].removeprefix("r")) for p in found] == shadowed


@pytest.mark.parametrize(
    ("given", "number"),
    [
        ([(WIDE, BLOCK), (WIDE, NOTE)], 1),
        ([(WIDE, BLOCK), ("max( prompt.a )  >  0.60", BLOCK)], 1),
        ([(WIDE, BLOCK), (WIDE, BLOCK), (WIDE, BLOCK)], 2),
        ([(WIDE, BLOCK), (WIDE, BLOCK, "match: {tenants: [x]}")], 0),
        ([(WIDE, NOTE), (WIDE, BLOCK, "mode: shadow")], 0),  # a trial beside what is enforced
        ([(WIDE, f"steer: {{vector: {v}, strength: 1.0}}") for v in "vw"], 0),
        ([(WIDE, f"steer: {{vector: v, strength: {s}}}") for s in "12"], 1),
    ],
)
def test_the_same_condition_twice(given, number):
    assert [code for _, code in doubts(*given)].count("duplicate-condition") == number


def test_the_other_rule_may_stand_in_another_file(tmp_path):
    (tmp_path / "a.yaml").write_text(rules((WIDE, BLOCK)))
    (tmp_path / "b.yaml").write_text(rules((WIDE, NOTE)).replace("r0", "s0"))
    (warning,) = [p for p in load_policy(tmp_path).warnings if p.code == "duplicate-condition"]
    assert warning.file.endswith("b.yaml")
    assert f"{tmp_path / 'a.yaml'}:6:11" in warning.hint


# --- calibrated thresholds

BUDGETS = (
    Budget(Scope.PROMPT, 0.01, 0.7, certified=True),
    Budget(Scope.PROMPT, 0.001, 0.9, certified=True),
    Budget(Scope.PROMPT, 0.0001, 0.99, certified=False),
)
MONITORS = {"a": MonitorInfo("a", 0.0, 1.0, BUDGETS, 5_000)}


@pytest.mark.parametrize(
    ("when", "doubtful"),
    [
        ("max(prompt.a) > 0.69", True),
        ("max(prompt.a) > 0.7", False),
        ("max(prompt.a) >= 0.9", False),
        ("0.91 < max(prompt.a)", True),
        ("max(prompt.a) > 0.8 and not max(prompt.a) > 0.95", False),
        ("max(prompt.a) > 0.8 or max(prompt.a) > 0.3", True),
        ("max(prompt.a) > 0.3 and (turn() > 1 or last(prompt.a) > 0.2)", True),  # told once
        ("mean(prompt.a) > 0.1", False),  # not what was calibrated
    ],
)
def test_a_blocks_threshold_outside_the_calibrated_ones(when, doubtful):
    assert [code for _, code in doubts((when, BLOCK), monitors=MONITORS)] == (
        ["outside-calibration"] if doubtful else []
    )
    assert doubts((when, NOTE), monitors=MONITORS) == []


def test_what_is_wrong_with_such_a_threshold_is_told():
    (low,) = [p for p in policy_from_text(rules((WIDE, BLOCK)), monitors=MONITORS).warnings if p.col == 27]
    assert "more than 0.01 of benign requests" in low.message
    assert "exceeds(prompt.a, fpr=0.001)" in low.hint


@pytest.mark.parametrize(
    ("when", "codes"),
    [
        ("count(response.a > 0.5, window=64) >= 2", []),
        ("count(response.a > 0.5, window=65) >= 2", ["wide-window"]),
        ("count(conversation.a > 0.5, window=65) >= 2", []),
        ("mean(response.a, window=65, min=8) > 0.5", ["wide-window"]),
    ],
)
def test_a_window_larger_than_any_response(when, codes):
    assert [code for _, code in doubts((when, LOG), max_response_tokens=64)] == codes


def test_contrived_conditions_do_not_hold_up_the_load(monkeypatch):
    """Comparing all alternatives of all rules is bounded; what stays out is warnings, and cheap ones are still told."""
    monkeypatch.setattr("guard.overlap._MAX_COMPARISONS", 0)
    assert doubts((WIDE, BLOCK), (NARROW, NOTE)) == []
    assert doubts((WIDE, BLOCK), (WIDE, BLOCK)) == [(9, "duplicate-condition")]
