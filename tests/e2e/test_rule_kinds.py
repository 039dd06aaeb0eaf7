"""Every kind of rule, each through one running server: every function, action, mode and scope, rollouts and exceptions.

Rules are chosen by the request's metadata, so that one server and one script play them all. Second opinions of all three
kinds of targets have a module of their own, `test_second_opinion`.
"""

import httpx
import openai
import pytest

from guard.actions import ACTIONS
from guard.expressions import SCALARS
from guard.functions import FUNCTIONS
from guard.scope import bucket
from guard.types import VectorInfo
from monitors.artifacts import MonitorSet
from server.app import create_admin_app
from server.engines.scripted import Script, ScriptedEngine
from server.policy_store import PolicyStore, Sources
from tests.e2e.conftest import make_service, running, scores

HARM = [0.1, 0.9, 0.9, 0.1, 0.8, 0.95, 0.1, 0.1]
WORDS = [f"<{i}>" for i in range(len(HARM))]
BROKEN_AT = 3  # the other monitor's score

# (condition, the response token at which it turns true; None: at the end of the prompt, or never)
CONDITIONS = {
    "max": ("max(response.harm) > 0.92", 5),
    "max-window": ("max(response.harm, window=2, min=7) < 0.5", 7),
    "min": ("min(response.harm, window=2) > 0.85", 2),
    "mean": ("mean(response.harm, window=3) > 0.6", 2),
    "mean-min": ("mean(response.harm, window=3, min=2) > 0.45", 1),
    "last": ("last(response.harm) > 0.92", 5),
    "ema": ("ema(response.harm, window=3) > 0.7", 5),  # .05 .475 .6875 .394 .597 .773
    "count": ("count(response.harm > 0.85, window=4) >= 2", 2),
    "run": ("run(response.harm > 0.7) >= 2", 2),
    "frac": ("frac(response.harm > 0.7, window=4) >= 0.75", 4),
    "exceeds": ("exceeds(response.harm, fpr=0.001)", 5),  # 0.9 in a rehearsal
    "exceeds-looser": ("exceeds(response.harm, fpr=0.01)", 1),  # 0.5
    "tokens": ("tokens() >= 4", 3),
    "turn": ("turn() >= 1", None),
    "prompt": ("max(prompt.harm) > 0.5", None),
    "conversation": ("count(conversation.harm > 0.55) >= 2", 1),  # one stands in the prompt
    "conversation-run": ("exceeds(conversation.harm, fpr=0.001)", 5),
    "between": ("0.7 < last(response.harm) < 0.85", 4),
    "not": ("not max(response.harm, window=3) > 0.5 and tokens() > 6", None),
    "or": ("max(response.harm) > 2 or run(response.harm < 0.2) >= 2", 7),
}
NEVER = {"not"}
ACTIONS_TRIED = {
    "block": ("block: {}", 5),
    "replace": ("replace: {message: instead}", 5),
    "steer": ("steer: {vector: calm, strength: 1.5, for_tokens: 2}", 5),
    "annotate": ("annotate: {}", 5),
    "log": ("log: {}", 5),
}


def rule(rule_id, when, then="block: {}", more=""):
    """A rule for those requests that ask for it."""
    return f'  - {{id: {rule_id}, when: "{when}", then: {{{then}}}, match: {{metadata: {{ask: [{rule_id}]}}}}{more}}}\n'


LAST = "last(response.harm) > 0.92"
RULES = "".join(
    [
        *(rule(f"when-{name}", when) for name, (when, _) in CONDITIONS.items()),
        *(rule(f"then-{name}", LAST, then) for name, (then, _) in ACTIONS_TRIED.items()),
        rule("shadow", LAST, more=", mode: shadow"),
        rule("off", LAST, more=", mode: off"),
        rule("rolled-out", LAST, more=", rollout: {percent: 50, by: request}"),
        rule("closed", "max(response.deception) > 2"),
        rule("open", "max(response.deception) > 2", more=", on_error: open"),
        rule("shadow-broken", "max(response.deception) > 2", more=", mode: shadow"),
        rule("excused", LAST),
        rule("excused-long-ago", LAST),
    ]
)
POLICY = f'apiVersion: interlock/v1\nkind: Policy\nmetadata: {{name: kinds, version: "1"}}\nrules:\n{RULES}'
EXCEPTIONS = """\
apiVersion: interlock/v1
kind: Exceptions
metadata: {name: exceptions, version: "1"}
exceptions:
  - {id: E-1, rules: [excused], mode: shadow, reason: a test of exceptions, approved_by: [x], expires: 2999-01-01T00:00:00Z, match: {metadata: {team: [red]}}}
  - {id: E-2, rules: ["excused-*"], mode: shadow, reason: a test of exceptions, approved_by: [x], expires: 2001-01-01T00:00:00Z}
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """One server, whose policy is a folder of two files."""
    root = tmp_path_factory.mktemp("kinds")
    folder = root / "policy"
    folder.mkdir()
    (folder / "policy.yaml").write_text(POLICY)
    (folder / "exceptions.yaml").write_text(EXCEPTIONS)
    broken = scores(deception={BROKEN_AT: float("nan")})["deception"]
    script = Script(WORDS, scores(harm={2: 0.6}), {"harm": HARM, "deception": broken})
    engine = ScriptedEngine(lambda _: script, ("harm", "deception"), vectors=("calm",))
    service = make_service(engine, POLICY, root / "decisions.jsonl", vectors=("calm",))
    installed = MonitorSet(engine.monitors)
    vectors = {"calm": VectorInfo("calm", steerable=True, verdict="causal")}
    store = PolicyStore(Sources(folder, None, lambda: installed), vectors=vectors)
    object.__setattr__(service, "policies", store)
    service.metrics.show_policy(store.current)
    with running(service, root / "decisions.jsonl") as started:
        yield started


def ask(live, rule_id, request_id=None, **metadata):
    """What a client of a stream sees (tokens, why it ended, text), and the record of it."""
    finish, text = None, ""
    options = {
        "metadata": {"ask": rule_id, **metadata},
        "extra_headers": {"x-request-id": request_id} if request_id else {},
    }
    try:
        for chunk in live.chat(stream=True, **options):
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
    except openai.BadRequestError as error:  # blocked on its prompt
        finish = error.code
    return text.count("<"), finish, text, live.records()[-1]


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_condition_blocks_at_its_token(live, name):
    token = CONDITIONS[name][1]
    said, finish, _, record = ask(live, f"when-{name}")
    if name in NEVER:
        assert (said, finish, record["action"]) == (len(WORDS), "stop", "allow")
    elif token is None:
        assert (said, finish, record["phase"]) == (0, "content_filter", "prompt")
    else:
        assert (said, finish, record["token"]) == (token, "content_filter", token)
    assert [match["rule"] for match in record["matches"]] == ([] if name in NEVER else [f"when-{name}"])


@pytest.mark.parametrize("name", ACTIONS_TRIED)
def test_every_action_does_what_it_says(live, name):
    steered = len(live.service.engine.steered)
    said, finish, text, record = ask(live, f"then-{name}")
    ends = name in {"block", "replace"}
    assert said == (5 if ends else len(WORDS))
    assert finish == ("content_filter" if name == "block" else "stop")
    assert text.endswith("instead") is (name == "replace")
    assert len(live.service.engine.steered) - steered == (name == "steer") * 1
    assert (record["action"], record["token"]) == (name, 5)


def test_every_function_and_every_action_is_tried():
    conditions = " ".join(when for when, _ in CONDITIONS.values())
    assert [name for name in (*FUNCTIONS, *SCALARS, "exceeds") if f"{name}(" not in conditions] == []
    assert {*ACTIONS_TRIED, "escalate"} == set(ACTIONS)


def test_a_shadow_rule_is_recorded_and_one_that_is_off_is_not(live):
    said, finish, _, record = ask(live, "shadow")
    assert (said, finish, record["action"]) == (len(WORDS), "stop", "allow")
    assert [(match["rule"], match["token"]) for match in record["shadow"]] == [("shadow", 5)]
    said, finish, _, record = ask(live, "off")
    assert (said, finish, record["matches"], record["shadow"]) == (len(WORDS), "stop", [], [])


def test_a_rollout_enforces_for_its_buckets_and_shadows_for_the_others(live):
    seen = set()
    for _ in range(40):
        said, _, _, record = ask(live, "rolled-out", request_id="chosen")  # a client can't choose its bucket
        is_in = bucket("rolled-out", record["decision_id"]) < 50
        seen.add(is_in)
        if is_in:
            assert (said, record["action"], record["shadow"]) == (5, "block", [])
        else:
            assert (said, record["action"], record["shadow"][0]["rule"]) == (
                len(WORDS),
                "allow",
                "rolled-out",
            )
        if seen == {True, False}:
            return
    raise AssertionError(f"40 requests, all in one bucket: {seen}")


def test_a_broken_score_stops_a_closed_rule_and_skips_an_open_or_a_shadow_one(live):
    said, finish, _, record = ask(live, "closed")
    assert (said, finish, record["action"]) == (BROKEN_AT, "content_filter", "unavailable")
    for rule_id in ("open", "shadow-broken"):
        said, finish, _, record = ask(live, rule_id)
        assert (said, finish, record["action"]) == (len(WORDS), "stop", "allow")
        assert [(error["rule"], error["token"]) for error in record["errors"]] == [(rule_id, BROKEN_AT)]


def test_an_exception_weakens_a_rule_for_its_subjects_until_it_expires(live):
    said, _, _, record = ask(live, "excused", team="red")
    assert (said, record["action"], record["exceptions"]) == (len(WORDS), "allow", ["E-1"])
    assert record["shadow"][0]["rule"] == "excused"
    assert ask(live, "excused", team="blue")[0] == 5
    said, _, _, record = ask(live, "excused-long-ago")
    assert (said, record["exceptions"]) == (5, [])


@pytest.mark.anyio
async def test_operators_see_the_policy_in_force_and_which_exceptions_are(live):
    admin = httpx.ASGITransport(create_admin_app(live.service))
    async with httpx.AsyncClient(transport=admin, base_url="http://admin") as http:
        told = (await http.get("/-/policy")).json()
        metrics = (await http.get("/metrics")).text
    assert told["policy"] == str(live.service.policies.current)
    assert (told["last_error"], len(told["files"]), len(told["loaded"])) == ("", 2, 32)
    steer = next(rule for rule in told["rules"] if rule["id"] == "then-steer")
    assert steer["then"] == {"steer": {"vector": "calm", "strength": 1.5, "for_tokens": 2}}
    assert (steer["when"], steer["mode"], steer["on_error"]) == (LAST, "enforce", "closed")
    assert {waiver["id"]: waiver["active"] for waiver in told["exceptions"]} == {"E-1": True, "E-2": False}
    assert 'interlock_policy_exception_expiry_timestamp_seconds{exception="E-2"} 9.783' in metrics
