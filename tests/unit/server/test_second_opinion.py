"""The parts of second opinions: the breaker on a clock of its own, the file of targets, and what is read as an answer."""

import base64
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from guard.errors import PolicyError
from guard.types import Phase
from server.breaker import Breaker, BreakerState, InARow
from server.second_opinion.config import read_targets
from server.second_opinion.openai_judge import OpenAIJudge
from server.second_opinion.types import AskError, Question
from server.second_opinion.webhook import Webhook

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
JUDGE = "judge: {kind: openai_judge, url: 'http://judge/v1', model: m, instructions: x%s}"


# --- the breaker


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def breaker(clock, failures=3):
    return Breaker(clock, InARow(failures), recovery_s=10)


def fail(breaker, times=1):
    for _ in range(times):
        assert breaker.admit()
        breaker.failed()


def test_a_breaker_opens_after_failures_in_a_row_only():
    b = breaker(Clock())
    fail(b, 2)
    assert b.admit()
    b.succeeded()
    fail(b, 2)
    assert b.admit()
    b.abandoned()  # says nothing
    assert b.state is BreakerState.CLOSED
    fail(b)
    assert b.state is BreakerState.OPEN
    assert not b.admit()


def test_after_a_while_one_request_tries():
    clock = Clock()
    b = breaker(clock)
    fail(b, 3)
    clock.now = 9.99
    assert not b.admit()
    clock.now = 10.0
    assert b.admit()
    assert not b.admit()  # one at a time
    b.failed()
    clock.now = 19.99
    assert not b.admit()
    clock.now = 20.0
    assert b.admit()
    b.succeeded()
    assert b.state is BreakerState.CLOSED
    fail(b, 2)  # it starts afresh
    assert b.admit()


def test_a_try_that_was_given_up_is_followed_by_another():
    clock = Clock()
    b = breaker(clock)
    fail(b, 3)
    clock.now = 10.0
    assert b.admit()
    b.abandoned()
    assert b.admit()


@given(st.lists(st.sampled_from(["ok", "bad", "gone", "wait"]), max_size=60), st.integers(1, 4))
def test_a_breaker_is_never_stuck_and_never_lets_through_while_it_is_open(events, limit):
    """Against the plain rule: so many failures since the last success, and the time of the last one."""
    clock = Clock()
    b = breaker(clock, limit)
    in_a_row, failed_at, trying_failed = 0, 0.0, False
    for event in events:
        if event == "wait":
            clock.now += 4.0
            continue
        is_open = in_a_row >= limit and clock.now < failed_at + 10 and not trying_failed
        assert b.admit() is not is_open
        if is_open:
            continue
        match event:
            case "ok":
                b.succeeded()
                in_a_row, trying_failed = 0, False
            case "bad":
                b.failed()
                in_a_row, failed_at, trying_failed = in_a_row + 1, clock.now, False
            case "gone":
                b.abandoned()
                trying_failed = in_a_row >= limit


# --- the file of targets


def read(tmp_path, *targets, **environ):
    path = tmp_path / "opinions.yaml"
    path.write_text("second_opinions:\n" + "".join(f"  {target}\n" for target in targets))
    return read_targets(path, environ)


def refused(tmp_path, *targets, **environ):
    with pytest.raises(PolicyError) as caught:
        read(tmp_path, *targets, **environ)
    (problem,) = caught.value.problems
    assert problem.file.endswith("opinions.yaml")
    return problem


def test_targets_of_every_kind(tmp_path):
    judge, flags, hook = read(
        tmp_path,
        JUDGE % ", api_key_env: KEY, breaker: {failures: 2, recovery: 1s}",
        "flags: {kind: moderation, url: 'https://mod.example/v1/', categories: [violence]}",
        "hook: {kind: webhook, url: 'https://hook.example/ask', secret_env: HOOK}",
        KEY=" sk-1\n",
        HOOK=SECRET,
    )
    assert (judge.name, judge.settings.endpoint) == ("judge", "http://judge/v1/chat/completions")
    assert judge.secret == SecretStr("sk-1")
    assert judge.settings.breaker.recovery_s == 1
    assert (flags.settings.endpoint, flags.secret) == ("https://mod.example/v1/moderations", None)
    assert hook.settings.endpoint == "https://hook.example/ask"
    assert "sk-1" not in repr((judge, hook))
    assert SECRET not in repr((judge, hook))


@pytest.mark.parametrize(
    ("target", "code", "at", "told"),
    [
        (JUDGE % ", key: sk-1", "unknown-key", "key:", "unknown key second_opinions.judge.key"),
        (JUDGE % ", timeout: 3", "value", "3}", "second_opinions.judge.timeout"),
        (JUDGE % ", max_concurrency: 0", "value", "0}", "greater than or equal to 1"),
        (JUDGE % ", api_key_env: NOPE", "no-key", "NOPE", "NOPE is not set"),
        (
            "judge: {kind: oracle, url: 'http://x'}",
            "unknown-value",
            "oracle",
            "openai_judge, moderation, webhook",
        ),
        ("judge: {url: 'http://x'}", "unknown-value", "{", "openai_judge, moderation, webhook"),
        ("judge: {kind: moderation, url: 'ftp://x'}", "value", "'ftp", "whole address"),
        ("judge: {kind: moderation, url: 'http://me:pw@x'}", "value", "'http", "no user or password"),
        ("judge: {kind: moderation}", "missing-key", "{", "missing key second_opinions.judge.url"),
        ("hook: {kind: webhook, url: 'http://x', secret_env: HOOK}", "bad-key", "HOOK", "HOOK is not whsec_"),
        ("Judge Judy: {kind: moderation, url: 'http://x'}", "value", "{", "should match pattern"),
    ],
)
def test_a_target_that_is_wrong_is_told_with_its_place_and_without_its_line(tmp_path, target, code, at, told):
    problem = refused(tmp_path, target, HOOK="short-and-secret")
    assert (problem.code, problem.line, problem.col) == (code, 2, f"  {target}".index(at) + 1)
    assert told in problem.message
    assert "sk-1" not in str(problem)
    assert "secret" not in str(problem).replace("secret_env", "")


def test_the_file_on_the_page_is_right(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "second-opinion.md").read_text(encoding="utf-8")
    path = tmp_path / "opinions.yaml"
    path.write_text(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    keys = {"JUDGE_KEY": "k", "MODERATION_KEY": "k", "HOOK_SECRET": SECRET}
    assert [target.name for target in read_targets(path, keys)] == ["judge", "flags", "on-call"]


@pytest.mark.parametrize(
    "text", ["", "- a\n", "targets: {}\n", "second_opinions: []\n", "second_opinions: {\n"]
)
def test_a_file_of_another_form(tmp_path, text):
    path = tmp_path / "opinions.yaml"
    path.write_text(text)
    with pytest.raises(PolicyError, match=r"opinions\.yaml:\d+:\d+: error"):
        read_targets(path, {})


def test_one_module_knows_the_http_client():
    server = Path(__file__).parents[3] / "server"
    users = [
        path
        for path in server.rglob("*.py")
        if re.search(r"^(import|from) httpx", path.read_text(), re.MULTILINE)
    ]
    assert [path.relative_to(server).as_posix() for path in users] == ["second_opinion/client.py"]


# --- what is sent, and what is an answer


def question(**changes):
    told = {
        "decision_id": "d", "choice": 0, "policy": "p@1#0", "rule": "ask", "phase": Phase.RESPONSE, "token": 2,
        "values": {"max(response.harm)": 0.9}, "messages": [{"role": "user", "content": "hi"}], "reply": "ho",
        "asked_at": datetime(2026, 1, 1, tzinfo=UTC),
    }  # fmt: skip
    return Question(**{**told, **changes})


OPENAI = OpenAIJudge(kind="openai_judge", url="http://x", model="m", instructions="Be strict. {braces} stay.")


@given(st.text(), st.text())
def test_whatever_is_judged_stays_between_the_two_lines(content, reply):
    asked = question(messages=[{"role": "user", "content": content}], reply=reply)
    body = json.loads(OPENAI.request(asked, None).body)
    first, material, last = body["messages"][1]["content"].split("\n")
    assert first == last
    assert first not in material
    assert json.loads(material) == {"conversation": [{"role": "user", "content": content}], "reply": reply}
    assert "{braces} stay." in body["messages"][0]["content"]


def test_the_lines_are_new_each_time():
    lines = {
        json.loads(OPENAI.request(question(), None).body)["messages"][1]["content"].split("\n")[0]
        for _ in range(5)
    }
    assert len(lines) == 5


def completion(content, **changes):
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop", **changes}
    return json.dumps({"id": "x", "choices": [choice]}).encode()


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.sampled_from(["allow", "block", "Allow"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("verdict"), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(json_values)
def test_nothing_but_the_word_is_an_allow(value):
    content = json.dumps(value)
    said = value.get("verdict") if isinstance(value, dict) else None
    if (
        said in ("allow", "block")
        and isinstance(said, str)
        and not isinstance(value.get("reason_code"), (int, float, list, dict))
    ):
        assert OPENAI.read(completion(content), question()).allow is (said == "allow")
    else:
        with pytest.raises(AskError) as caught:
            OPENAI.read(completion(content), question())
        assert not caught.value.counts


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_no_answer(body):
    for settings in (OPENAI, Webhook(kind="webhook", url="http://x", secret_env="X")):
        with pytest.raises(AskError):
            settings.read(body, question())


@pytest.mark.parametrize(
    ("said", "kept"), [("harmful", "harmful"), ("the user wrote pomegranate", "other"), (None, "")]
)
def test_only_reasons_of_the_list_are_kept(said, kept):
    content = json.dumps({"verdict": "block", "reason_code": said})
    assert OPENAI.read(completion(content), question()).reason == kept


def test_a_judge_that_was_cut_off_or_gave_two_answers_is_not_understood():
    for body in (
        completion('{"verdict": "allow"}', finish_reason="length"),
        completion('{"verdict": "allow"}', finish_reason="content_filter"),
        completion('```json\n{"verdict": "allow"}\n```'),
        json.dumps({"choices": 2 * json.loads(completion('{"verdict": "allow"}'))["choices"]}).encode(),
        b'{"error": {"message": "no"}}',
    ):
        with pytest.raises(AskError, match="not_understood"):
            OPENAI.read(body, question())
