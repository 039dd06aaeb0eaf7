"""How a block is told, by the style of the server or of the tenant. What is blocked is the same in all of them."""

from datetime import UTC, datetime

import anthropic
import openai
import pytest

from server.engines.scripted import Script
from server.keys.secret import hash_of
from server.keys.store import KeyStore
from server.keys.types import BlockStyle
from tests.e2e.conftest import scores
from tests.e2e.test_keys import HELLO, client_of, key

POLICY = """
apiVersion: interlock/v1
kind: Policy
metadata: {name: styles, version: "1"}
rules:
  - {id: ask, when: max(prompt.harm) > 0.5, then: {block: {message: Not this.}}}
  - {id: told, when: max(response.harm) > 0.5, then: {block: {message: Not that.}}}
tests:
  - {name: t, given: {prompt: {harm: "0.9"}}, expect: {action: block}}
  - {name: u, given: {response: {harm: "0.9"}}, expect: {action: block}}
"""
TOKENS = ["a", "b", "c", "d"]
BAD_PROMPT = Script(TOKENS, scores(0.9), scores())
BAD_REPLY = Script(TOKENS, scores(), scores(harm={2: 0.9}))
PLAIN = Script(TOKENS, scores(), scores())
FILTERED = {"policy": {"filtered": True, "detected": True}}
CLEAR = {"policy": {"filtered": False, "detected": False}}


@pytest.fixture
def styled(serve):
    def start(style, script):
        return serve(POLICY, script, service_options={"block_style": BlockStyle(style)})

    return start


def streamed(live, **options):
    chunks = list(live.chat(stream=True, **options))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    refusal = "".join(choice.delta.refusal or "" for choice in choices)
    return chunks, refusal, choices[-1].finish_reason


@pytest.mark.parametrize("style", ["openai", "azure"])
def test_a_blocked_prompt_is_an_error(styled, style):
    live = styled(style, BAD_PROMPT)
    for options in ({}, {"stream": True}):
        with pytest.raises(openai.BadRequestError) as error:
            live.chat(**options)
        assert (error.value.code, error.value.param) == ("content_filter", "messages")
        told = error.value.response.json()["error"]
        if style == "azure":
            inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": FILTERED}
            assert (told["status"], told["innererror"]) == (400, inner)
        else:
            assert set(told) == {"message", "type", "param", "code"}


def test_a_blocked_prompt_may_be_told_as_a_refusal(styled):
    live = styled("refusal_200", BAD_PROMPT)
    reply = live.chat(n=2)
    for choice in reply.choices:
        assert (choice.finish_reason, choice.message.refusal) == ("content_filter", "Not this.")
        assert choice.message.content is None
    assert reply.usage.completion_tokens == 0
    assert reply.interlock["action"] == "block"
    _, refusal, finish = streamed(live)
    assert (refusal, finish) == ("Not this.", "content_filter")
    text = live.client.completions.create(model=live.model, prompt="hello")
    assert (text.choices[0].text, text.choices[0].finish_reason) == ("", "content_filter")
    response = live.client.responses.create(model=live.model, input="hello")
    assert (response.status, response.output[0].content[0].refusal) == ("incomplete", "Not this.")
    claude = anthropic.Anthropic(base_url=live.url, api_key="unused", max_retries=0)
    message = claude.messages.create(model=live.model, max_tokens=9, messages=HELLO)
    assert (message.stop_reason, message.content) == ("refusal", [])
    assert {record["outcome"] for record in live.records()} == {"blocked"}


@pytest.mark.parametrize("style", list(BlockStyle))
def test_a_blocked_reply_is_a_refusal_in_each(styled, style):
    live = styled(style, BAD_REPLY)
    choice = live.chat().choices[0]
    assert (choice.finish_reason, choice.message.refusal) == ("content_filter", "Not that.")
    _, refusal, finish = streamed(live)
    assert (refusal, finish) == ("Not that.", "content_filter")


@pytest.mark.parametrize(("script", "found"), [(PLAIN, CLEAR), (BAD_REPLY, FILTERED)])
def test_azures_results_stand_in_replies_and_streams(styled, script, found):
    live = styled("azure", script)
    of_prompt = [{"prompt_index": 0, "content_filter_results": CLEAR}]
    reply = live.chat(n=2)
    assert reply.prompt_filter_results == of_prompt
    assert [choice.content_filter_results for choice in reply.choices] == [found, found]
    chunks, _, _ = streamed(live)
    assert (chunks[0].choices, chunks[0].prompt_filter_results) == ([], of_prompt)
    assert chunks[-1].choices[0].content_filter_results == found
    text = live.client.completions.create(model=live.model, prompt=["one", "two"])
    assert [result["prompt_index"] for result in text.prompt_filter_results] == [0, 1]
    assert text.choices[1].content_filter_results == found


def test_a_tenant_has_its_own_style(serve, tmp_path):
    path = tmp_path / "keys.yaml"
    text = "apiVersion: interlock/v1\nkind: Keys\ntenants: {acme: {block_style: refusal_200}, clinic: {}}\nkeys:\n"
    for name in ("acme", "clinic"):
        text += f"  - {{id: {name}, tenant: {name}, sha256: {hash_of(key(name).split('_')[2]).hex()}}}\n"
    path.write_text(text)
    live = serve(POLICY, BAD_PROMPT, service_options={"keys": KeyStore(path, lambda: datetime.now(UTC))})

    def ask(name):
        with client_of(live, key(name)) as client:
            return client.chat.completions.create(model=live.model, messages=HELLO)

    assert ask("acme").choices[0].finish_reason == "content_filter"
    with pytest.raises(openai.BadRequestError):
        ask("clinic")
