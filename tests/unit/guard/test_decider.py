"""What a decider does with scores: severity, shadow, failures, holding back, steering, and the order of steps."""

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.errors import DeciderError
from guard.policy import policy_from_text
from guard.replay import replay
from guard.types import Emit, Hold, Phase, Say, Severity, Steer, StepScores, Stop, StopReason, Subject

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NAN, INF = float("nan"), float("inf")


def policy(*rules, **defaults):
    """Each rule is `when -> then` with further keys after a second arrow."""
    lines = ["apiVersion: interlock/v1", "kind: Policy", "metadata: {name: p, version: '1'}"]
    lines.append("defaults: {" + ", ".join(f"{key}: {value}" for key, value in defaults.items()) + "}")
    lines.append("rules:")
    for i, rule in enumerate(rules):
        when, then, *more = (part.strip() for part in rule.split("->"))
        lines += [
            f"  - id: r{i}",
            f"    when: {when}",
            f"    then: {{{then}}}",
            *(f"    {key}" for key in more),
        ]
    return policy_from_text("\n".join(lines))


def decider(*rules, **defaults):
    return policy(*rules, **defaults).decider(Subject(), now=NOW)


def prompt(d, *, final=True, **series):
    start = d._judged
    return d.decide(
        StepScores(Phase.PROMPT, start, max(map(len, series.values()), default=0), series, final=final)
    )


def respond(d, **scores):
    return d.decide(
        StepScores(Phase.RESPONSE, d._judged, 1, {name: [score] for name, score in scores.items()})
    )


def started(*rules, **defaults):
    d = decider(*rules, **defaults)
    prompt(d, a=[0.1], b=[0.1])
    return d


BLOCK = (Stop(StopReason.BLOCKED),)
UNAVAILABLE = (Stop(StopReason.UNAVAILABLE, "interlock_unavailable"),)


# --- the prompt


def test_a_prompt_rule_blocks_at_the_end_of_the_prompt():
    d = decider("max(prompt.a) > 0.9 -> block: {message: no}")
    assert prompt(d, final=False, a=[0.95]).effects == (Hold(),)
    decision = prompt(d, a=[0.1])
    assert decision.effects == (Say("no", refusal=True), Stop(StopReason.BLOCKED))
    (match,) = decision.matches
    assert (match.rule, match.phase, match.token, match.values) == (
        "r0",
        Phase.PROMPT,
        1,
        {"max(prompt.a)": 0.95},
    )
    assert (d.outcome.action, d.outcome.phase, d.outcome.token) == (Severity.BLOCK, Phase.PROMPT, 1)


def test_a_prompt_rule_is_decided_once():
    d = decider("last(prompt.a) > 0.9 -> steer: {vector: v, strength: 1.0}")
    assert prompt(d, a=[0.95]).effects == (Steer("r0", "v", 1.0, 0), Hold())
    assert respond(d).effects == (Emit(1),)
    assert len(d.outcome.matches) == 1


def test_a_response_rule_is_silent_in_the_prompt():
    d = decider("not max(response.a) > 0.9 -> block: {}")
    assert prompt(d, a=[0.1]).matches == ()
    assert respond(d, a=0.1).effects == BLOCK


def test_an_empty_prompt_matches_nothing():
    d = decider("max(prompt.a) > 0.9 -> block: {}", "not max(prompt.a) > 0.9 -> log: {}")
    assert prompt(d, a=[]).effects == (Hold(),)
    assert d.outcome.matches == []


def test_a_rule_over_both_phases():
    d = decider("max(prompt.a) > 0.5 and max(response.a) > 0.5 -> block: {}")
    assert prompt(d, a=[0.9]).effects == (Hold(),)
    assert respond(d, a=0.2).effects == (Emit(1),)
    assert respond(d, a=0.9).effects == BLOCK
    assert d.outcome.token == 1


# --- the conversation, and numbers that need no monitor


def test_a_conversation_goes_on_from_the_prompt_over_the_response():
    d = decider("count(conversation.a > 0.5, window=4) >= 3 -> block: {}")
    assert d.monitors == {(Phase.PROMPT, "a"), (Phase.RESPONSE, "a")}
    assert prompt(d, a=[0.9, 0.1, 0.9, 0.9]).effects == BLOCK
    d = decider("count(conversation.a > 0.5, window=4) >= 3 -> block: {}")
    assert prompt(d, a=[0.9, 0.9, 0.1, 0.1]).effects == (Hold(),)
    assert [respond(d, a=s).effects for s in (0.9, 0.9)] == [(Emit(1),), (Emit(2),)]
    assert respond(d, a=0.9).effects == BLOCK
    assert (d.outcome.phase, d.outcome.token) == (Phase.RESPONSE, 2)


def test_prompt_response_and_conversation_are_three_series():
    d = decider(
        "count(prompt.a > 0.5) >= 2 -> log: {}",
        "count(response.a > 0.5) >= 2 -> log: {}",
        "count(conversation.a > 0.5) >= 2 -> log: {}",
    )
    prompt(d, a=[0.9])
    assert [[m.rule for m in respond(d, a=0.9).matches] for _ in range(2)] == [["r2"], ["r1"]]


def test_a_conversation_holds_text_back_and_fails_in_either_phase():
    when = "max(conversation.a) > 0.5 -> block: {}"
    d = decider(when, holdback=2)
    prompt(d, a=[0.1])
    assert [respond(d, a=0.1).effects for _ in range(3)] == [(Hold(),), (Hold(),), (Emit(1),)]
    assert prompt(decider(when), a=[NAN]).effects == UNAVAILABLE
    assert respond(started(when), a=NAN).effects == UNAVAILABLE
    opened = decider(when, on_error="open")
    prompt(opened, a=[NAN])  # it could not see all of it, so it is not judged
    assert respond(opened, a=0.9).effects == (Emit(1),)


functions = st.sampled_from(
    [
        "max(conversation.a{w}) > 0.7",
        "mean(conversation.a{w}) > 0.5",
        "ema(conversation.a, window=3) > 0.6",
        "run(conversation.a > 0.5{w}) >= 3",
        "frac(conversation.a > 0.5{w}) > 0.6",
    ]
)


@given(functions, st.integers(3, 6), st.lists(st.floats(0, 1, width=16), max_size=12), st.data())
def test_a_conversation_is_decided_as_one_series_would_be(when, window, scores, data):
    """From the end of the prompt on, its verdict is that of a response with the same scores."""
    when = when.format(w=f", window={window}")
    split = data.draw(st.integers(0, len(scores)))
    d = decider(f"{when} -> log: {{}}")
    matches = [*prompt(d, a=scores[:split]).matches]
    for score in scores[split:]:
        matches += respond(d, a=score).matches
    plain = decider(f"{when.replace('conversation', 'response')} -> steer: {{vector: v, strength: 1.0}}")
    prompt(plain)
    told = [any(isinstance(e, Steer) for e in respond(plain, a=score).effects) for score in scores]
    first = next((i for i, true in enumerate(told, start=1) if true and i >= max(split, 1)), None)
    found = [m.token + 1 + (split if m.phase is Phase.RESPONSE else 0) for m in matches]
    assert found == ([] if first is None else [first])


def test_tokens_counts_those_of_the_response_that_were_judged():
    d = decider("tokens() >= 3 -> block: {}", "tokens() == 0 -> log: {}")
    assert [m.rule for m in prompt(d, a=[0.1] * 9).matches] == ["r1"]
    assert [respond(d).effects for _ in range(3)] == [(Emit(1),), (Emit(2),), BLOCK]
    assert d.outcome.matches[-1].values == {"tokens()": 3}
    assert d.monitors == frozenset()


def test_a_prompt_rule_that_counts_tokens_is_decided_at_each():
    d = decider("max(prompt.a) > 0.5 and tokens() >= 2 -> block: {}")
    assert prompt(d, a=[0.9]).effects == (Hold(),)
    assert [respond(d).effects for _ in range(2)] == [(Emit(1),), BLOCK]


@pytest.mark.parametrize(("turn", "matched"), [(1, False), (3, False), (4, True)])
def test_turn_is_that_of_the_subject(turn, matched):
    d = policy("turn() > 3 -> log: {}").decider(Subject(turn=turn), now=NOW)
    prompt(d)
    assert bool(d.outcome.matches) is matched
    assert respond(d).matches == ()  # decided once


# --- severity


def test_a_harmless_rule_listed_first_does_not_mask_a_block_rule():
    d = started(
        "max(response.a) > 0.5 -> steer: {vector: v, strength: 1.0}",
        "count(response.b > 0.5) >= 2 -> block: {}",
    )
    assert respond(d, a=0.9, b=0.9).effects == (Steer("r0", "v", 1.0, 0), Emit(1))
    assert respond(d, a=0.9, b=0.9).effects == BLOCK
    assert [match.rule for match in d.outcome.matches] == ["r0", "r1"]


ACTIONS = {
    "log": "log: {}",
    "annotate": "annotate: {}",
    "steer": "steer: {vector: v, strength: 1.0}",
    "replace": "replace: {message: canned}",
    "block": "block: {}",
}


@given(st.permutations(list(ACTIONS)), st.integers(1, 5))
def test_the_most_severe_match_wins_in_any_order(order, number):
    chosen = order[:number]
    d = started(*(f"max(response.a) > 0.5 -> {ACTIONS[kind]}" for kind in chosen))
    decision = respond(d, a=0.9)
    strongest = max(chosen, key=list(ACTIONS).index)
    assert d.outcome.action.name.lower() == strongest
    assert [match.action for match in decision.matches] == chosen
    expected = {
        "block": BLOCK,
        "replace": (Say("canned", refusal=False), Stop(StopReason.REPLACED)),
        "steer": (Steer(f"r{chosen.index('steer')}", "v", 1.0, 0) if "steer" in chosen else None, Emit(1)),
    }.get(strongest, (Emit(1),))
    assert decision.effects == expected


def test_a_match_is_told_once():
    d = started("max(response.a) > 0.5 -> log: {}")
    assert [len(respond(d, a=score).matches) for score in (0.1, 0.9, 0.9)] == [0, 1, 0]
    assert d.outcome.matches[0].token == 1


def test_steering_is_asked_for_as_long_as_it_holds():
    d = started("last(response.a) > 0.5 -> steer: {vector: v, strength: 2.0, for_tokens: 8}")
    steer = Steer("r0", "v", 2.0, 8)
    assert [respond(d, a=s).effects for s in (0.9, 0.9, 0.1, 0.9)] == [
        (steer, Emit(1)),
        (steer, Emit(2)),
        (Emit(3),),
        (steer, Emit(4)),
    ]
    assert len(d.outcome.matches) == 1


def test_all_vectors_are_steered_and_of_one_vector_the_first_rule_wins():
    d = started(
        *(f"max(response.a) > 0.5 -> steer: {{vector: {v}, strength: {s}.0}}" for v, s in ["v1", "w2", "v3"])
    )
    assert respond(d, a=0.9).effects == (Steer("r0", "v", 1.0, 0), Steer("r1", "w", 2.0, 0), Emit(1))


def test_shadow_has_no_effect_and_is_recorded():
    d = started(
        "max(response.a) > 0.5 -> block: {} -> mode: shadow", "max(response.b) > 0.5 -> log: {}", holdback=0
    )
    assert respond(d, a=0.9, b=0.9).effects == (Emit(1),)
    assert [m.rule for m in d.outcome.shadow] == ["r0"]
    assert d.outcome.action is Severity.LOG


def test_a_rule_that_is_off_is_not_read():
    d = decider("max(response.a) > 0.5 -> block: {} -> mode: off")
    assert d.monitors == frozenset()
    prompt(d)
    assert respond(d).effects == (Emit(1),)


# --- holding back


def test_holdback_delays_and_finish_releases():
    d = started("max(response.a) > 0.5 -> block: {}", holdback=2)
    assert d.holdback == 2
    assert [respond(d, a=0.1).effects for _ in range(4)] == [(Hold(),), (Hold(),), (Emit(1),), (Emit(2),)]
    assert d.finish().effects == (Emit(4),)


@pytest.mark.parametrize("limit", [0, 2])
def test_at_most_delivered_is_kept_by_holding(limit):
    d = started(f"max(response.a) > 0.5 -> block: {{at_most_delivered: {limit}}}")
    effects = [respond(d, a=0.1).effects for _ in range(4)]
    assert effects == [(Emit(t + 1),) if t < limit else (Hold(),) for t in range(4)]
    assert d.finish().effects == (Emit(4),)


def test_prompt_rules_and_shadow_rules_hold_nothing_back():
    d = started(
        "max(prompt.a) > 0.5 -> block: {at_most_delivered: 0}",
        "max(response.a) > 0.5 -> block: {at_most_delivered: 0} -> mode: shadow",
        holdback=8,
    )
    assert d.holdback == 0
    assert respond(d, a=0.1).effects == (Emit(1),)


# --- failures


@pytest.mark.parametrize("bad", [NAN, INF, -INF, np.float32("nan")])
def test_a_score_that_is_not_finite_never_passes(bad):
    d = started("max(response.a) > 0.5 -> block: {}")
    decision = respond(d, a=bad)
    assert decision.effects == UNAVAILABLE
    (failure,) = decision.failures
    assert (failure.rule, failure.monitor, failure.reason, failure.token) == ("r0", "a", "nan", 0)
    assert d.outcome.unavailable
    assert d.outcome.action is Severity.ALLOW


@pytest.mark.parametrize(
    "scores", [{}, {"a": []}, {"a": [0.1, 0.1]}, {"a": ["x"]}, {"a": [10**400]}, {"a": None}]
)
def test_a_missing_score_never_passes(scores):
    d = started("max(response.a) > 0.5 -> block: {}")
    decision = d.decide(StepScores(Phase.RESPONSE, 0, 1, scores))
    assert decision.effects == UNAVAILABLE
    assert decision.failures[0].reason == "missing"


@pytest.mark.parametrize(
    ("series", "token", "reason"),
    [
        ([0.1, NAN, INF], 1, "nan"),
        ([0.1, 0.1], 2, "missing"),
        (None, 0, "missing"),
        ([0.1] * 4, 3, "missing"),
        (np.array([0.1, 0.2, np.nan], np.float32), 2, "nan"),
        (["x", 0.1, 0.1], 0, "missing"),
    ],
)
def test_a_bad_prompt_fails_at_the_end_of_its_chunk(series, token, reason):
    d = decider("max(prompt.a) > 0.5 -> block: {}")
    scores = {} if series is None else {"a": series}
    decision = d.decide(StepScores(Phase.PROMPT, 0, 3, scores, final=False))
    assert decision.effects == UNAVAILABLE
    assert (decision.failures[0].token, decision.failures[0].reason) == (token, reason)


def test_an_open_failure_skips_the_rule_and_the_others_still_run():
    d = started("max(response.a) > 0.5 -> block: {} -> on_error: open", "max(response.b) > 0.5 -> block: {}")
    first = respond(d, a=NAN, b=0.1)
    assert (first.effects, len(first.failures)) == ((Emit(1),), 1)
    second = respond(d, a=NAN, b=0.1)
    assert (second.effects, second.failures) == ((Emit(2),), ())  # told once per rule
    assert respond(d, a=NAN, b=0.9).effects == BLOCK
    assert len(d.outcome.failures) == 1


def test_after_an_open_failure_the_rule_judges_the_next_token():
    d = started("max(response.a) > 0.5 -> block: {} -> on_error: open")
    respond(d, a=NAN)
    assert respond(d, a=0.9).effects == BLOCK


def test_an_open_rule_that_missed_a_part_of_the_prompt_is_not_judged_on_the_rest():
    d = decider("not max(prompt.a) > 0.5 -> block: {} -> on_error: open")
    prompt(d, final=False, a=[NAN])
    assert prompt(d, a=[0.1]).effects == (Hold(),)
    assert d.outcome.matches == []


def test_a_shadow_failure_is_recorded_only():
    d = started("max(response.a) > 0.5 -> block: {} -> mode: shadow")
    decision = respond(d, a=NAN)
    assert (decision.effects, len(decision.failures)) == ((Emit(1),), 1)


def test_a_block_wins_over_unavailable_and_unavailable_over_the_rest():
    for action, effects in [
        ("block: {}", BLOCK),
        ("replace: {message: m}", UNAVAILABLE),
        ("log: {}", UNAVAILABLE),
    ]:
        d = started("max(response.a) > 0.5 -> block: {}", f"max(response.b) > 0.5 -> {action}")
        assert respond(d, a=NAN, b=0.9).effects == effects
        assert d.outcome.unavailable is (effects is UNAVAILABLE)


def test_a_monitor_that_no_rule_reads_may_be_anything():
    d = started("max(response.a) > 0.5 -> block: {}")
    assert respond(d, a=0.1, other=NAN).effects == (Emit(1),)


def test_a_token_outside_the_scope_is_no_failure_and_not_counted():
    d = started("mean(response.a, window=2) > 0.5 -> block: {}")
    assert [respond(d, a=s).effects for s in (None, 0.9, None)] == [(Emit(1),), (Emit(2),), (Emit(3),)]
    assert respond(d, a=0.9).effects == BLOCK


def test_no_numpy_leaks_into_what_is_recorded():
    d = started("max(response.a) > 0.5 and max(prompt.a) < 1 -> log: {}")
    d.decide(StepScores(Phase.RESPONSE, 0, 1, {"a": np.array([0.75], np.float32)}))
    assert {type(value) for value in d.outcome.matches[0].values.values()} == {float}


# --- the contract


def test_nothing_is_decided_after_a_stop():
    d = started("max(response.a) > 0.5 -> block: {}")
    respond(d, a=0.9)
    with pytest.raises(DeciderError, match="over"):
        respond(d, a=0.1)
    with pytest.raises(DeciderError, match="over"):
        d.finish()


@pytest.mark.parametrize(
    "step",
    [
        StepScores(Phase.PROMPT, 0, 1, {"a": [0.1]}),
        StepScores(Phase.RESPONSE, 1, 1, {"a": [0.1]}),
        StepScores(Phase.RESPONSE, 0, 2, {"a": [0.1, 0.1]}),
    ],
)
def test_a_gap_or_a_wrong_order_is_refused(step):
    with pytest.raises(DeciderError):
        started("max(response.a) > 0.5 -> block: {}").decide(step)


def test_finish_needs_a_decided_prompt_and_comes_once():
    d = decider("max(response.a) > 0.5 -> block: {}")
    with pytest.raises(DeciderError, match="before the end of the prompt"):
        d.finish()
    prompt(d, a=[0.1])
    assert d.finish().effects == (Emit(0),)
    with pytest.raises(DeciderError, match="over"):
        d.finish()


RULES = (
    "max(response.a) > 0.8 -> block: {}",
    "count(response.a > 0.5, window=4) >= 3 -> block: {at_most_delivered: 3}",
    "mean(response.b, window=3) > 0.6 -> steer: {vector: v, strength: 1.0}",
    "run(response.b > 0.9) >= 4 -> replace: {message: m}",
    "max(prompt.a, window=4) > 0.9 or mean(prompt.b) > 0.7 -> annotate: {}",
    "min(prompt.b, window=2) > 0.6 and ema(response.a, window=3) > 0.4 -> log: {}",
)
score = st.one_of(st.floats(0, 1, width=16), st.none())
series = st.lists(st.tuples(score, score), max_size=30)


@given(series, st.integers(0, 5), st.booleans())
def test_what_is_emitted_grows_and_never_exceeds_what_is_judged(response, holdback, open_errors):
    d = decider(*RULES, holdback=holdback, on_error="open" if open_errors else "closed")
    prompt(d, a=[0.1], b=[0.1])
    emitted = 0
    for judged, (a, b) in enumerate(response, start=1):
        effects = respond(d, a=a, b=b).effects
        stopped = any(isinstance(effect, Stop) for effect in effects)
        uptos = [effect.upto for effect in effects if isinstance(effect, Emit)]
        assert not (stopped and uptos)
        assert sum(isinstance(effect, Emit | Hold | Stop) for effect in effects) == 1
        if stopped:
            with pytest.raises(DeciderError):
                d.finish()
            return
        for upto in uptos:
            assert emitted < upto <= min(judged - holdback, 3)
            emitted = upto
    assert d.finish().effects == (Emit(len(response)),)


@given(series.filter(len), st.lists(st.integers(1, 8), max_size=8), series)
def test_how_a_prompt_is_cut_into_chunks_changes_nothing(tokens, cuts, response):
    outcomes = []
    for sizes in ([], cuts):
        d = decider(*RULES)
        rest = list(tokens)
        for size in sizes:
            if size < len(rest):
                a, b = zip(*rest[:size], strict=True)
                prompt(d, final=False, a=a, b=np.array(b, object))
                rest = rest[size:]
        a, b = zip(*rest, strict=True)
        decisions = [prompt(d, a=a, b=b)]
        for a, b in response:
            if isinstance(decisions[-1].effects[-1], Stop):
                break
            decisions.append(respond(d, a=a, b=b))
        outcomes.append((d.outcome, decisions))
    assert outcomes[0] == outcomes[1]


# --- scores that were lost


def test_why_a_score_was_lost_is_told_and_the_rest_is_as_with_any_bad_score():
    d = started("max(response.a) > 0.5 -> block: {}", "max(response.b) > 0.5 -> log: {}")
    step = StepScores(Phase.RESPONSE, 0, 1, {"a": [NAN], "b": [0.1]}, lost={"a": "timeout"})
    decision = d.decide(step)
    assert decision.effects == UNAVAILABLE
    assert [(f.rule, f.monitor, f.reason) for f in decision.failures] == [("r0", "a", "timeout")]


def test_a_reason_is_no_failure_where_there_is_a_score():
    d = started("max(response.a) > 0.5 -> block: {}")
    assert d.decide(StepScores(Phase.RESPONSE, 0, 1, {"a": [0.1]}, lost={"a": "error"})).failures == ()


def test_it_fails_without_a_monitor_only_where_an_enforced_rule_that_fails_closed_reads_it():
    d = decider(
        "max(prompt.a) > 0.5 -> log: {}",
        "max(prompt.b) > 0.5 -> log: {} -> on_error: open",
        "max(prompt.c) > 0.5 -> log: {} -> mode: shadow",
        "max(prompt.d) > 0.5 -> log: {} -> mode: off",
    )
    assert [name for name in "abcde" if d.fails_without([name])] == ["a"]
    assert d.fails_without(["b", "a"])
    assert not d.fails_without([])


def test_what_is_only_read_fails_without_no_monitor_of_replies():
    d = decider("max(prompt.a) > 0.5 -> log: {}", "max(response.b) > 0.5 -> log: {}")
    assert [name for name in "ab" if d.fails_without([name], [Phase.PROMPT])] == ["a"]


def test_a_replay_tells_the_reason_that_was_recorded():
    p = policy("max(response.a) > 0.5 -> block: {}")
    outcome = replay(
        p, Subject(), {"a": [0.1]}, {"a": [0.1, NAN]}, NOW, lost={Phase.RESPONSE: {"a": "timeout"}}
    )
    assert (outcome.unavailable, [f.reason for f in outcome.failures]) == (True, ["timeout"])
