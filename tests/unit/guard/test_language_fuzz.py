"""Policies made of well-formed conditions: each loads or is refused with reasons, and what loads decides without surprise."""

from hypothesis import given, settings
from hypothesis import strategies as st

from guard.errors import PolicyError
from guard.parser import MAX_DEPTH, parse
from guard.policy import policy_from_text
from guard.replay import replay
from guard.types import Phase, Severity, Subject
from tests.unit.guard.test_policy import HEAD, KNOWN, NOW

series = st.sampled_from(["prompt.harm", "response.harm", "conversation.harm"])
options = st.sampled_from(["", ", window=3", ", window=3, min=2", ", min=4"])
numbers = st.sampled_from(["0.25", "0.5", "0.9"])
symbols = st.sampled_from([">", ">=", "<", "<=", "==", "!="])
calls = st.one_of(
    st.builds("{}({}{})".format, st.sampled_from(["max", "min", "mean"]), series, options),
    st.builds("{}({} > {}{})".format, st.sampled_from(["count", "frac", "run"]), series, numbers, options),
    st.builds("ema({}, window=4)".format, series),
    st.builds("last({})".format, series),
    st.sampled_from(["tokens()", "turn()"]),
)
leaves = st.one_of(
    st.builds("{} {} {}".format, calls, symbols, numbers),
    st.builds("{} {} {}".format, calls, symbols, calls),
    st.builds("{} <= {} < {}".format, numbers, calls, numbers),
    st.just("exceeds(prompt.harm, fpr=0.001)"),
)
conditions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds("not ({})".format, inner),
        st.builds("({} and {})".format, inner, inner),
        st.builds("({} or {})".format, inner, inner),
    ),
    max_leaves=5,
)
actions = st.sampled_from(
    ["block: {}", "replace: {message: m}", "steer: {vector: honesty, strength: 1}", "annotate: {}", "log: {}"]
)
scores = st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.4, 0.6, 0.95, 1.0])), max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(conditions, actions), min_size=1, max_size=4), scores, scores, st.integers(0, 8))
def test_what_loads_decides_and_what_does_not_says_why(rules, prompt, response, turn):
    lines = [
        f'  - {{id: r{i}, when: "{when}", then: {{{then}}}, override: {{reason: a good one}}}}'
        for i, (when, then) in enumerate(rules)
    ]
    try:
        policy = policy_from_text(HEAD + "rules:\n" + "\n".join(lines), **KNOWN, max_response_tokens=64)
    except PolicyError as error:
        codes = {problem.code for problem in error.problems if problem.severity == "error"}
        assert codes <= {"unreachable", "unused-series"}
        return
    told = {
        phase: {name: values for of, name in policy.monitors if of is phase}
        for phase, values in ((Phase.PROMPT, prompt), (Phase.RESPONSE, response))
    }
    outcome = replay(policy, Subject(turn=turn), told[Phase.PROMPT], told[Phase.RESPONSE], NOW)
    assert not outcome.failures
    assert outcome.action is max((match.severity for match in outcome.matches), default=Severity.ALLOW)
    by_id = {rule.id: rule for rule in policy.rules}
    for match in outcome.matches:
        rule = by_id[match.rule]
        assert match.phase is Phase.PROMPT or rule.reads_response
        assert set(match.values) <= {quantity.text for quantity in rule.quantities}
    shadowed = {p.message.split("'")[1] for p in policy.warnings if p.code == "shadowed"}
    acting = [match for match in outcome.matches if match.severity is outcome.action]
    assert not acting or any(match.rule not in shadowed for match in acting)


@given(st.integers(1, 2 * MAX_DEPTH), leaves)
def test_depth_is_capped_for_every_leaf(depth, leaf):
    text = "not (" * depth + leaf + ")" * depth
    if depth <= MAX_DEPTH:
        parse(text)
        return
    try:
        parse(text)
    except PolicyError as error:
        assert "deep" in str(error)  # noqa: PT017
    else:
        raise AssertionError("nested too deeply, and understood")
