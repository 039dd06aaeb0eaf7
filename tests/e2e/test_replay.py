"""Traffic that a running server decided, decided again from its log: the same to the last bit, under the same policy."""

import json
import random

import openai
import pytest
from typer.testing import CliRunner

from server.engines.scripted import Script
from server.policy_cli import policy_app

POLICY = """\
apiVersion: interlock/v1
kind: Policy
metadata: {name: recorded, version: "1"}
defaults: {holdback: 3}
rules:
  - {id: harm-prompt, when: max(prompt.harm) > 0.97, then: {block: {message: "no"}}}
  - {id: harm-mean, when: "mean(prompt.harm, window=4) > 0.8", mode: shadow, then: {block: {}}}
  - {id: deception-run, when: "count(response.deception > 0.9, window=6) >= 3", then: {block: {}}}
  - {id: canned, when: "run(response.harm > 0.9) >= 3 or last(response.harm) > 0.995", then: {replace: {message: "instead"}}}
  - {id: calm-down, when: "mean(response.deception, window=5) > 0.6", on_error: open, then: {steer: {vector: calm, strength: 2.0}}}
  - {id: drift, when: "ema(response.harm, window=8) > 0.6 and not max(prompt.harm) > 0.9", then: {annotate: {}}, rollout: {percent: 50, by: request}}
  - {id: grey, when: "frac(response.deception > 0.5, window=8) > 0.7", then: {log: {}}}
  - {id: chats, match: {endpoints: [chat], metadata: {app: [a*]}}, when: "min(response.harm, window=3) > 0.5", then: {log: {}}}
"""


def script_for(rng):
    def series(length):
        values = [round(rng.random(), 3) for _ in range(length)]
        if rng.random() < 0.1:
            values[rng.randrange(length)] = float("nan")
        return values

    def play(request):
        num_response = rng.randrange(1, 40)
        prompt = {name: series(len(request.prompt_ids)) for name in ("harm", "deception")}
        prompt["harm"] = [value if rng.random() < 0.02 else value * 0.9 for value in prompt["harm"]]
        response = {name: series(num_response) for name in ("harm", "deception")}
        return Script([f"{i} " for i in range(num_response)], prompt, response)

    return play


@pytest.fixture
def traffic(serve):
    """A server that has decided a few hundred choices of every kind."""
    live = serve(POLICY, script_for(random.Random(7)))  # noqa: S311
    for i in range(120):
        options = {"n": 1 + i % 3, "metadata": {"app": ["abc", "xyz"][i % 2]}}
        try:
            if i % 3 == 0:
                live.client.completions.create(model=live.model, prompt=f"text {i}", n=1 + i % 2)
            elif i % 3 == 1:
                for _ in live.chat(f"hello {i}", stream=True, **options):
                    pass
            else:
                live.chat(f"hello {i}", **options)
        except openai.APIError:
            pass  # blocked on its prompt, or unavailable
    return live


def replay(log, policy, *options):
    said = CliRunner().invoke(
        policy_app, ["replay", "--format", "json", "--audit", str(log), str(policy), *options]
    )
    return said.exit_code, json.loads(said.stdout)


def test_a_replay_under_the_recording_policy_decides_the_same_to_the_last_bit(traffic):
    records = traffic.records()
    actions = {record["action"] for record in records}
    assert actions >= {"allow", "log", "annotate", "steer", "replace", "block", "unavailable"}
    assert any(record["shadow"] for record in records)
    code, told = replay(traffic.audit_path, traffic.audit_path.with_suffix(".yaml"), "--expect-same")
    assert (code, told["judged"], told["same"]) == (0, len(records), len(records))
    assert not told["unjudged"]


def test_a_candidate_on_recorded_traffic_is_told_by_rule(traffic, tmp_path):
    candidate = tmp_path / "candidate.yaml"
    candidate.write_text(
        POLICY.replace("max(prompt.harm) > 0.97", "max(prompt.harm) > 0.5").replace(
            "id: grey, when", "id: grey, mode: off, when"
        )
    )
    records = traffic.records()
    code, told = replay(traffic.audit_path, candidate)
    newly = {
        change["after_rule"]
        for change in told["changes"]
        if change["before"] == "allow" and change["after"] == "block"
    }
    assert (code, newly) == (0, {"harm-prompt"})
    assert not any(change["after"] == "log" and change["after_rule"] == "grey" for change in told["changes"])
    ids = {f"{record['decision_id']}#{record['choice']}".removesuffix("#0") for record in records}
    assert all(set(change["examples"]) <= ids for change in told["changes"])
    assert told["judged"] == len(records)
