"""The parts of the policy language through a running server, and what its decision log and metrics say of them."""

from dataclasses import replace

import openai
import pytest

from guard.audit import recorded_scores, recorded_subject
from guard.errors import PolicyError
from guard.replay import replay
from guard.types import Phase
from monitors.base import Evidence
from monitors.types import CausalVerdict
from server.engines.scripted import Script, ScriptedEngine
from tests.e2e.conftest import scores

WORDS = [f"<{i}>" for i in range(8)]


def policy(when, then="block: {}", more=""):
    return f"""
apiVersion: interlock/v1
kind: Policy
metadata: {{name: p, version: "1"}}
rules:
  - {{id: rule, when: "{when}", then: {{{then}}}{more}}}
"""


def delivered(live, **options):
    """How many tokens a stream shows, and why it ended."""
    chunks = list(live.chat(stream=True, **options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    return text.count("<"), chunks[-1].choices[0].finish_reason


@pytest.mark.parametrize(
    ("when", "shown", "reason"),
    [
        ("exceeds(response.harm, fpr=0.001)", 5, "content_filter"),  # 0.9 in a rehearsal
        ("exceeds(response.harm, fpr=0.01)", 3, "content_filter"),  # 0.5
        ("exceeds(conversation.harm, fpr=0.001)", 5, "content_filter"),
        ("exceeds(prompt.harm, fpr=0.001)", 8, "stop"),
        ("count(conversation.harm > 0.55) >= 2", 3, "content_filter"),  # one in the prompt
        ("count(response.harm > 0.55) >= 2", 5, "content_filter"),
        ("tokens() > 6", 6, "content_filter"),
        ("max(response.harm) > 0.55 and tokens() >= 7", 6, "content_filter"),
    ],
)
def test_what_a_rule_blocks(serve, when, shown, reason):
    live = serve(policy(when), Script(WORDS, scores(harm={2: 0.6}), scores(harm={3: 0.7, 5: 0.95})))
    assert delivered(live) == (shown, reason)


def test_the_turn_is_the_number_of_user_messages_and_is_recorded(serve):
    live = serve(policy("turn() >= 2"), Script(WORDS, scores(), scores()))
    assert live.chat().choices[0].finish_reason == "stop"
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    with pytest.raises(openai.BadRequestError):
        live.client.chat.completions.create(model=live.model, messages=messages)
    assert live.client.completions.create(model=live.model, prompt="x").choices[0].finish_reason == "stop"
    records = live.records()
    assert [(record["turn"], record["action"]) for record in records] == [
        (1, "allow"),
        (2, "block"),
        (1, "allow"),
    ]
    for record in records:
        series = [recorded_scores(record, phase) for phase in Phase]
        outcome = replay(live.service.policies.current, recorded_subject(record), *series, live.service.now())
        assert outcome.verdict == record["action"]


def test_an_uncalibrated_monitor_blocks_only_on_a_written_override_which_shows(serve):
    script = Script(WORDS, scores(), scores(harm={3: 0.7}))

    def engine():
        return ScriptedEngine(lambda _: script, ("harm",), calibration=None)

    with pytest.raises(PolicyError, match=r"error\[uncalibrated\]"):
        serve(policy("max(response.harm) > 0.5"), engine=engine())
    text = policy("max(response.harm) > 0.5", more=", override: {reason: incident 4711}")
    live = serve(text, engine=engine())
    assert delivered(live) == (3, "content_filter")
    (match,) = live.records()[0]["matches"]
    assert match["override"] == "incident 4711"
    assert live.metric("interlock_rule_overrides", rule="rule", gate="calibration") == 1
    live.service.policies._sources.policy.write_text(policy("max(response.harm) > 0.5", "log: {}"))
    live.reload()
    assert live.metric("interlock_rule_overrides", rule="rule", gate="calibration") == 0


def test_a_monitor_that_its_card_bars_acts_only_on_a_written_override_which_shows(serve):
    engine = ScriptedEngine(lambda _: Script(WORDS, scores(), scores(harm={3: 0.7})), ("harm",))
    invalid = Evidence(verdict=CausalVerdict.INVALID)
    engine.monitors = tuple(replace(monitor, evidence=invalid) for monitor in engine.monitors)
    when = "max(response.harm) > 0.5"
    live = serve(policy(when, "annotate: {}"), engine=engine)
    assert delivered(live) == (8, "stop")
    path = live.service.policies._sources.policy
    for then in ("block: {}", "replace: {message: m}", "steer: {vector: calm, strength: 1}"):
        path.write_text(policy(when, then))
        with pytest.raises(PolicyError, match=r"error\[barred-monitor\].*verdict 'invalid'"):
            live.reload()
    path.write_text(policy(when, more=", override: {reason: incident 4711}"))
    live.reload()
    assert delivered(live) == (3, "content_filter")
    assert live.records()[-1]["matches"][0]["override"] == "incident 4711"
    assert live.metric("interlock_rule_overrides", rule="rule", gate="validity") == 1


def test_a_calibrated_rule_needs_no_override_and_its_matches_tell_none(serve):
    live = serve(policy("max(response.harm) > 0.5"), Script(WORDS, scores(), scores(harm={3: 0.7})))
    assert delivered(live) == (3, "content_filter")
    assert "override" not in live.records()[0]["matches"][0]
    samples = [sample for metric in live.service.metrics.registry.collect() for sample in metric.samples]
    assert [sample for sample in samples if sample.name == "interlock_rule_overrides"] == []
