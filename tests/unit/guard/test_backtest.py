"""A candidate on recorded traffic; and that a replay, which skips what it can, decides as the live decider does."""

import json
import math
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.audit import decision_record
from guard.backtest import Backtest, rejudge
from guard.policy import policy_from_text
from guard.recorded import UnjudgedError
from guard.replay import replay
from guard.types import Advice, Answer, Outcome, Phase, StepScores, Stop, Subject

NOW = datetime(2026, 12, 1, tzinfo=UTC)
TS = "2026-12-01T00:00:00.000Z"

CONDITIONS = [
    "max(prompt.a) > 0.7",
    "not max(prompt.a) > 0.7",
    "mean(prompt.b) >= 0.3 or min(prompt.a, window=2) < 0.1",
    "max(response.a) > 0.7",
    "0.2 < mean(response.a, window=3) <= 0.6",
    "mean(response.b, window=4, min=2) > 0.5",
    "mean(response.a) >= 0.7",
    "not mean(response.a, window=2) < 0.3",
    "count(response.a > 0.7, window=4) >= 2 and not max(prompt.b) > 0.9",
    "count(0.2 < response.b <= 0.7) == 3",
    "run(response.a >= 0.7) >= 3",
    "run(response.b < 0.3, window=3) != 0",
    "frac(response.b > 0.5, window=3) > 0.6",
    "frac(response.a == 0.7, min=2) >= 1",
    "ema(response.a, window=3) < 0.2",
    "ema(response.b, window=2) > 0.55 or last(response.a) < 0",
    "max(response.a) > max(prompt.a)",
    "min(response.a) > mean(response.b)",
    "0.1 < 0.2 < last(response.b)",
    "max(prompt.a, min=3) < 0.5",
    "count(conversation.a > 0.5, window=6) >= 4",
    "tokens() >= 5 and last(response.b) > 0.3",
    "tokens() > 9",
    "mean(conversation.b, window=5) > 0.5 or turn() > 1",
    "exceeds(response.a, fpr=0.001)",
]
ACTIONS = [
    "block: {}",
    "replace: {message: no}",
    "escalate: {to: judge}",
    "escalate: {to: judge, on_timeout: allow, at_most_delivered: 2}",
    "steer: {vector: v, strength: 1.0}",
    "annotate: {}",
    "log: {}",
]


def policy_of(rules):
    lines = ["apiVersion: interlock/v1", "kind: Policy", "metadata: {name: p, version: '1'}", "rules:"]
    for i, (when, then, mode, on_error) in enumerate(rules):
        lines.append(
            f'  - {{id: r{i}, when: "{when}", then: {{{then}}}, mode: {mode}, on_error: {on_error}}}'
        )
    return policy_from_text("\n".join(lines))


no_deadline = settings(deadline=None)  # a policy is compiled for each example

rules = st.lists(
    st.tuples(
        st.sampled_from(CONDITIONS),
        st.sampled_from(ACTIONS),
        st.sampled_from(["enforce", "enforce", "shadow", "off"]),
        st.sampled_from(["open", "closed"]),
    ),
    min_size=1,
    max_size=5,
)
usual = st.one_of(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]), st.floats(0, 1, width=32))
odd = st.one_of(st.none(), st.just(math.nan), st.just(math.inf), st.floats(-1e18, 1e18))
score = st.one_of(usual, usual, usual, usual, usual, usual, usual, odd)


@st.composite
def phases(draw):
    """Series of two monitors in both phases; one may end early, as where a monitor broke."""
    series = {}
    for phase in Phase:
        length = draw(st.integers(0 if phase is Phase.RESPONSE else 1, 14))
        one = draw(
            st.one_of(
                st.lists(score, min_size=length, max_size=length),
                st.lists(usual, min_size=length, max_size=length),
            )
        )
        other = draw(st.lists(usual, min_size=length, max_size=length))
        if draw(st.integers(0, 9)) == 0:
            other = other[:-1]
        series[phase] = {"a": one, "b": other}
    return series


def advise(question, phase, token):
    """Some answer, always the same one for the same question."""
    answers = [answer for answer in Answer if answer is not Answer.UNKNOWN]
    return Advice(answers[(len(question.rule) + 7 * token + (phase is Phase.PROMPT)) % len(answers)])


def decided_plainly(policy, subject, series):
    """The live decider, one token after the other, all rules."""

    def decide(step):
        decision = decider.decide(step)
        if not decider.pending:
            return decision
        return decider.resolve(
            {effect.rule: advise(effect, decision.phase, decision.token) for effect in decision.effects}
        )

    decider = policy.decider(subject, now=NOW)
    length = max(map(len, series[Phase.PROMPT].values()))
    decision = decide(StepScores(Phase.PROMPT, 0, length, series[Phase.PROMPT], final=True))
    for token in range(max(map(len, series[Phase.RESPONSE].values()))):
        if any(isinstance(effect, Stop) for effect in decision.effects):
            break
        scores = {name: values[token : token + 1] for name, values in series[Phase.RESPONSE].items()}
        decision = decide(StepScores(Phase.RESPONSE, token, 1, scores))
    return decider.outcome


@no_deadline
@given(rules, phases())
def test_a_replay_decides_as_the_live_decider_whatever_it_skips(some_rules, series):
    policy = policy_of(some_rules)
    again = replay(policy, Subject(), series[Phase.PROMPT], series[Phase.RESPONSE], NOW, advise=advise)
    assert again == decided_plainly(policy, Subject(), series)


@pytest.mark.parametrize("when", CONDITIONS)
@no_deadline
@given(phases())
def test_no_condition_is_skipped_that_could_have_fired(when, series):
    policy = policy_of([(when, "block: {}", "enforce", "closed")])
    again = replay(policy, Subject(), series[Phase.PROMPT], series[Phase.RESPONSE], NOW, advise=advise)
    assert again == decided_plainly(policy, Subject(), series)


@no_deadline
@given(st.lists(st.floats(0.6, 0.6000001), min_size=24, max_size=200))
def test_rounding_of_means_does_not_hide_a_match(values):
    """A mean of equal numbers may be an ulp above them: the bounds must leave room for that."""
    policy = policy_of([(f"mean(response.a, window=24) > {max(values)!r}", "log: {}", "enforce", "closed")])
    series = {Phase.PROMPT: {"a": [0.1]}, Phase.RESPONSE: {"a": values}}
    again = replay(policy, Subject(), series[Phase.PROMPT], series[Phase.RESPONSE], NOW, advise=advise)
    assert again == decided_plainly(policy, Subject(), series)


# --- records


OLD = policy_of(
    [
        ("max(prompt.a) > 0.9", "block: {}", "enforce", "closed"),
        ("max(response.a) > 0.9", "block: {}", "enforce", "closed"),
    ]
)


def record(prompt, response, policy=OLD, *, decision_id="d1", usage=None, **changes):
    series = {Phase.PROMPT: {"a": prompt}, Phase.RESPONSE: {"a": response}}
    outcome = decided_plainly(policy, Subject(), series)
    if outcome.phase is Phase.RESPONSE:
        series[Phase.RESPONSE]["a"] = response[: outcome.token + 1]
    written = decision_record(
        decision_id=decision_id,
        ts=TS,
        outcome=outcome,
        subject=Subject(),
        policy=policy,
        scores=series,
        usage=usage or {"prompt_tokens": len(prompt), "completion_tokens": len(series[Phase.RESPONSE]["a"])},
    )
    return json.loads(json.dumps({**written, **changes}))


def tally_of(policy, *records):
    tally = Backtest(policy)
    for i, one in enumerate(records):
        tally.add(one, f"line {i + 1}")
    return tally


@no_deadline
@given(rules, phases())
def test_under_its_own_policy_a_record_is_decided_the_same_to_the_last_bit(some_rules, series):
    policy = policy_of(some_rules)
    outcome = decided_plainly(policy, Subject(), series)
    written = decision_record(
        decision_id="d", ts=TS, outcome=outcome, subject=Subject(), policy=policy, scores=series
    )
    judged = rejudge(policy, json.loads(json.dumps(written)))
    assert judged.recorded.outcome == outcome
    assert judged.same


def test_who_would_newly_be_blocked_is_told_by_rule_with_examples():
    stricter = policy_of(
        [
            ("max(prompt.a) > 0.5", "block: {}", "enforce", "closed"),
            ("max(response.a) > 0.9", "annotate: {}", "enforce", "closed"),
        ]
    )
    tally = tally_of(
        stricter,
        record([0.6], [0.1], decision_id="newly"),
        record([0.1], [0.95], decision_id="softer"),
        record([0.1], [0.2], decision_id="fine"),
        record([0.95], [], decision_id="still"),
    )
    told = {str(c): (g.count, g.examples) for c, g in tally.changes.items()}
    assert told == {
        "allow -> block by rule r0": (1, ["newly"]),
        "block by rule r1 -> annotate by rule r1": (1, ["softer"]),
    }
    assert (tally.num_judged, tally.num_same, tally.num_changed) == (4, 2, 2)
    assert tally.num_open_ended == 1
    assert tally.verdicts_before == {"allow": 2, "block": 2}
    assert tally.verdicts_after == {"allow": 1, "block": 2, "annotate": 1}


def test_the_same_verdict_at_another_token_is_told_apart():
    lower = policy_of(
        [
            ("max(prompt.a) > 0.9", "block: {}", "enforce", "closed"),
            ("max(response.a) > 0.4", "block: {}", "enforce", "closed"),
        ]
    )
    tally = tally_of(lower, record([0.1], [0.5, 0.95]))
    assert (tally.shifted.count, tally.num_changed, tally.num_same) == (1, 0, 0)


def test_only_a_few_examples_are_kept():
    stricter = policy_of([("max(prompt.a) > 0.5", "block: {}", "enforce", "closed")])
    tally = tally_of(stricter, *(record([0.6], [0.1], decision_id=f"d{i}") for i in range(9)))
    (group,) = tally.changes.values()
    assert (group.count, group.examples) == (9, ["d0", "d1", "d2", "d3", "d4"])


def test_a_monitor_that_was_not_recorded_makes_a_record_unjudged_not_blocked():
    other = policy_of([("max(response.b) > 0.5", "block: {}", "enforce", "closed")])
    tally = tally_of(other, record([0.1], [0.2], decision_id="x"))
    assert {reason: g.examples for reason, g in tally.unjudged.items()} == {
        "no scores of response.b were recorded": ["x"]
    }
    assert tally.num_judged == 0


def test_a_rule_whose_scores_were_not_recorded_is_left_out_and_the_others_are_judged():
    both = policy_of(
        [
            ("max(response.a) > 0.5", "annotate: {}", "enforce", "closed"),
            ("max(response.b) > 0.5", "block: {}", "enforce", "closed"),
            ("max(prompt.c) > 0.5", "block: {}", "shadow", "closed"),
        ]
    )
    tally = tally_of(both, record([0.1], [0.6], decision_id="x"), record([0.1], [0.2], decision_id="y"))
    assert {key: group.examples for key, group in tally.blind.items()} == {
        ("r1", "response.b"): ["x", "y"],
        ("r2", "prompt.c"): ["x", "y"],
    }
    assert [str(change) for change in tally.changes] == ["allow -> annotate by rule r0"]
    assert (tally.num_judged, tally.num_same, tally.num_same_in_part) == (2, 0, 1)  # never called the same


def test_a_rule_that_is_off_or_does_not_apply_needs_no_scores():
    quiet = policy_of(
        [
            ("max(response.a) > 0.9", "block: {}", "enforce", "closed"),
            ("max(response.b) > 0.5", "block: {}", "off", "closed"),
        ]
    )
    assert tally_of(quiet, record([0.1], [0.2])).num_same == 1


def test_a_block_on_the_prompt_needs_no_scores_of_the_response():
    both = policy_of(
        [
            ("max(prompt.a) > 0.5", "block: {}", "enforce", "closed"),
            ("max(response.b) > 0.5", "block: {}", "enforce", "closed"),
        ]
    )
    tally = tally_of(both, record([0.6], [0.2]))
    assert [c.after_rule for c in tally.changes] == ["r0"]


def test_a_prompt_that_was_cut_off_is_not_decided():
    cut = record([0.1, 0.2], [], usage={"prompt_tokens": 5, "completion_tokens": 0})
    lower = policy_of([("max(prompt.a) > 0.15", "block: {}", "enforce", "closed")])
    assert rejudge(lower, cut).after == Outcome()


def test_a_rollout_by_request_goes_by_the_recorded_decision_id():
    folder_rules = "apiVersion: interlock/v1\nkind: Policy\nmetadata: {name: p, version: '1'}\nrules:\n  - {id: r, when: max(prompt.a) > 0.5, then: {block: {}}, rollout: {percent: 50, by: request}}\n"
    policy = policy_from_text(folder_rules)
    for decision_id in map(str, range(20)):
        expected = replay(policy, Subject(decision_id=decision_id), {"a": [0.9]}, {}, NOW)
        judged = rejudge(policy, record([0.9], [], decision_id=decision_id))
        assert judged.after == expected


def damaged(**changes):
    return record([0.1], [0.2], **changes)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (5, "not a decision record"),
        ([], "not a decision record"),
        ({}, "not a decision record"),
        ({"v": 2}, "a record of version 2"),
        (damaged(ts="yesterday"), "not a decision record"),
        (damaged(metadata=None), "not a decision record"),
        (damaged(scores={"prompt": {"a": {"n": 3, "max": 1}}}), "summary only"),
        (damaged(scores={"prompt": {"a": {"n": 1, "series_f32": "%%%"}}}), "damaged"),
        (damaged(scores={"prompt": {"a": {"n": 1, "series_f32": "AAA="}}}), "damaged"),
        (damaged(scores={"prompt": {"a": {"n": 1, "series_f32": "AAAAAA==", "none": [[0, 10**12]]}}}), "damaged"),
        (damaged(scores={"prompt": {"a": {"n": 1, "series_q8": "AA=="}}}), "damaged"),
        (damaged(matches=[{"rule": "x", "action": "explode", "mode": "enforce", "phase": "prompt", "token": 0, "values": {}}]), "not known"),
    ],
)  # fmt: skip
def test_what_is_not_a_record_is_counted_with_its_reason(broken, reason):
    with pytest.raises(UnjudgedError, match=reason):
        rejudge(OLD, broken)
    assert tally_of(OLD, broken).num_unjudged == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    max_leaves=8,
)


@no_deadline
@given(st.sampled_from(sorted(record([0.1], [0.2]))), json_values)
def test_no_value_of_any_key_breaks_the_tally(key, value):
    tally = tally_of(OLD, {**record([0.1], [0.2]), key: value}, {"scores": value}, value)
    assert tally.num_judged + tally.num_unjudged == 3
