"""Records: scores survive exactly, replay of a record decides the same, and the chain shows tampering."""

import json
import math
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.audit import (
    chained,
    decision_record,
    read_series,
    record_hash,
    recorded_scores,
    recorded_subject,
    series_record,
)
from guard.policy import load_policy
from guard.replay import replay
from guard.types import Phase, StepScores, Stop, Subject

POLICY = load_policy(Path(__file__).parent / "policies" / "baseline.yaml")
NOW = datetime(2026, 12, 1, tzinfo=UTC)

single = st.one_of(st.none(), st.floats(width=32))
double = st.one_of(st.none(), st.floats())


def same(one, other):
    return len(one) == len(other) and all(
        a == b or (a is not None and b is not None and math.isnan(a) and math.isnan(b))
        for a, b in zip(one, other, strict=True)
    )


@given(st.lists(st.one_of(single, double)))
def test_an_exact_series_reads_back_as_it_was(values):
    record = json.loads(json.dumps(series_record(values)))
    assert same(read_series(record), values)


@given(st.lists(single))
def test_scores_of_32_bits_take_32_bits(values):
    assert "series_f32" in series_record(values)


@given(st.lists(st.one_of(st.none(), st.just(math.nan), st.floats(-5, 5)), min_size=1))
def test_a_rounded_series_is_off_by_half_a_step_at_most(values):
    record = series_record(values, "q8")
    low, high = record["range"]
    for got, value in zip(read_series(record), values, strict=True):
        if value is None or math.isnan(value):
            assert same([got], [value])
        else:
            assert abs(got - value) <= (high - low) / 253 / 2 + 1e-9


def test_a_summary_without_values():
    assert series_record([0.5, None, 1.0], "none") == {"n": 3, "max": 1.0, "p95": 0.975}
    with pytest.raises(KeyError):
        read_series(series_record([0.5], "none"))


def decided_live(subject, prompt, response):
    decider = POLICY.decider(subject, now=NOW)
    cut = len(prompt) // 2
    decision = decider.decide(StepScores(Phase.PROMPT, 0, cut, {"harm": prompt[:cut]}))
    if not isinstance(decision.effects[-1], Stop):
        decision = decider.decide(
            StepScores(Phase.PROMPT, cut, len(prompt) - cut, {"harm": prompt[cut:]}, final=True)
        )
    for token, score in enumerate(response):
        if isinstance(decision.effects[-1], Stop):
            break
        decision = decider.decide(
            StepScores(Phase.RESPONSE, token, 1, {"deception": np.array([score], object)})
        )
    return decider.outcome


score = st.one_of(st.none(), st.floats(0, 1, width=32), st.just(0.7), st.just(0.9), st.just(math.nan))


@given(st.lists(score, max_size=8), st.lists(score, max_size=30))
def test_replay_of_a_record_equals_the_live_decision(prompt, response):
    subject = Subject(
        tenant="t", model="m", key_id="k", request_id="r", decision_id="d", metadata={"app": "x"}
    )
    outcome = decided_live(subject, prompt, response)
    record = decision_record(
        decision_id="d",
        ts="2026-12-01T00:00:00Z",
        outcome=outcome,
        subject=subject,
        policy=POLICY,
        scores={Phase.PROMPT: {"harm": prompt}, Phase.RESPONSE: {"deception": response}},
    )
    read = json.loads(json.dumps(record, allow_nan=False))
    again = replay(
        POLICY,
        recorded_subject(read),
        recorded_scores(read, Phase.PROMPT),
        recorded_scores(read, Phase.RESPONSE),
        NOW,
    )
    assert again == outcome


def record(**changes):
    subject = Subject(tenant="acme", model="m")
    outcome = replay(POLICY, subject, {"harm": [0.1, 0.95]}, {}, NOW)
    given = {
        "decision_id": "d",
        "ts": "t",
        "outcome": outcome,
        "subject": subject,
        "policy": POLICY,
        "scores": {},
    }
    return decision_record(**(given | changes))


def test_a_record_tells_what_was_decided():
    told = record()
    assert (told["action"], told["phase"], told["token"]) == ("block", "prompt", 1)
    assert told["policy"] == {"name": "baseline", "version": "2026.11.22-1", "digest": POLICY.digest[:12]}
    assert told["matches"] == [
        {
            "rule": "harm-prompt",
            "mode": "enforce",
            "action": "block",
            "severity": "critical",
            "phase": "prompt",
            "token": 1,
            "values": {"max(prompt.harm)": 0.95},
        }
    ]


def test_a_record_in_a_chain_names_the_one_before_and_vouches_for_itself():
    first = chained(record(decision_id="0"), "")
    second = json.loads(json.dumps(chained(record(decision_id="1"), first["hash"])))
    assert second["prev"] == first["hash"]
    assert second["hash"] == record_hash(second)
    assert second["hash"] != record_hash({**second, "tenant": "other"})
    assert second["hash"] != record_hash({**second, "prev": ""})
