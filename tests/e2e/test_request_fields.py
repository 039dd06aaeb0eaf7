"""Every field that is known is honoured or refused by name: none that changes the meaning is ignored."""

import pytest

from server.engines.scripted import Script
from tests.e2e.conftest import scores

WORDS = ["Once", " upon", " a", " time"]
PLAIN = Script(WORDS, scores(), scores())
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SECRET = "my secret"


def post(live, path, **change):
    prompt = {"messages": [{"role": "user", "content": SECRET}]} if path == CHAT else {"prompt": SECRET}
    return live.http.post(path, json={"model": live.model, **prompt, **change})


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        (CHAT, "tools", [{"type": "function", "function": {"name": "f"}}]),
        (CHAT, "functions", [{"name": "f"}]),
        (CHAT, "tool_choice", "required"),
        (CHAT, "response_format", {"type": "json_object"}),
        (CHAT, "response_format", {"type": "json_schema", "json_schema": {"name": "x"}}),
        (CHAT, "reasoning_effort", "high"),
        (CHAT, "verbosity", "low"),
        (CHAT, "store", True),
        (CHAT, "service_tier", "flex"),
        (CHAT, "modalities", ["text", "audio"]),
        (CHAT, "echo", True),
        (CHAT, "prompt", "x"),
        (CHAT, "min_tokens", 3),
        (CHAT, "skip_special_tokens", False),
        (CHAT, "include_stop_str_in_output", True),
        (CHAT, "chat_template_kwargs", {"enable_thinking": True}),
        (CHAT, "add_generation_prompt", False),
        (CHAT, "add_special_tokens", True),
        (CHAT, "continue_final_message", True),
        (CHAT, "priority", -1),
        (CHAT, "cache_salt", "x"),
        (CHAT, "return_token_ids", True),
        (CHAT, "prompt_logprobs", 1),
        (CHAT, "grammar", "root ::= x"),
        (CHAT, "guided_json", {"type": "object"}),
        (CHAT, "structured_outputs", {"regex": "x"}),
        (TEXT, "suffix", "x"),
        (TEXT, "best_of", 3),
        (TEXT, "max_completion_tokens", 1),
        (TEXT, "top_logprobs", 2),
        (TEXT, "messages", [{"role": "user", "content": "x"}]),
        (TEXT, "response_format", {"type": "json_object"}),
        (TEXT, "use_beam_search", True),
    ],
)
def test_what_is_not_served_is_a_400_whose_param_is_the_field(serve, path, field, value):
    reply = post(serve(script=PLAIN), path, **{field: value})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == field
    assert field in reply.json()["error"]["message"]
    assert "secret" not in reply.text


@pytest.mark.parametrize(
    "harmless",
    [
        {"tools": None, "tool_choice": "auto", "parallel_tool_calls": True},
        {"response_format": {"type": "text"}, "modalities": ["text"], "verbosity": "medium"},
        {"store": False, "service_tier": "auto", "prompt_cache_key": "x", "reasoning_effort": "none"},
        {"skip_special_tokens": True, "add_generation_prompt": True, "priority": 0, "echo": False},
        {"user": "u", "safety_identifier": "s", "metadata": {"a": "b"}},
    ],
)
def test_a_field_that_asks_for_nothing_is_accepted_and_known(serve, harmless):
    live = serve(script=PLAIN)
    assert post(live, CHAT, **harmless).status_code == 200
    assert live.metric("interlock_request_unknown_fields_total") == 0


def test_a_field_that_nobody_knows_is_accepted_and_counted(serve):
    live = serve(script=PLAIN)
    assert post(live, CHAT, frobnicate=1, twiddle=None).status_code == 200
    assert live.metric("interlock_request_unknown_fields_total") == 2


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Ann"},
        {"function_call": {"name": "f"}},
        {"reasoning_content": "hm"},
    ],
)
def test_a_field_of_a_message_is_refused_where_it_stands(serve, change):
    (field,) = change
    messages = [{"role": "assistant", "content": SECRET, **change}]
    error = post(serve(script=PLAIN), CHAT, messages=messages).json()["error"]
    assert error["param"] == f"messages.0.{field}"
    assert field in error["message"]
    assert "secret" not in error["message"]


def test_a_reply_can_be_sent_back_as_history_as_the_client_dumps_it(serve):
    """Withheld replies too: their refusal is what the model is shown as having said."""
    seen = []

    def played(request):
        seen.append(bytes(request.prompt_ids).decode())
        return PLAIN

    live = serve(script=played)
    said = live.chat().choices[0].message
    withheld = {"role": "assistant", "content": None, "refusal": "Withheld.", "tool_calls": None}
    parts = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    messages = [said.model_dump(), withheld, parts, {"role": "user", "content": "go on"}]
    live.client.chat.completions.create(model=live.model, messages=messages)
    assert seen[-1] == "assistant: Once upon a time\nassistant: Withheld.\nassistant: No.\nuser: go on\n"


def test_identifiers_of_end_users_have_a_limit(serve):
    live = serve(script=PLAIN)
    for field, limit in (("user", 512), ("safety_identifier", 128)):
        assert post(live, CHAT, **{field: "x" * limit}).status_code == 200
        reply = post(live, CHAT, **{field: "x" * (limit + 1)})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, field)
        assert post(live, CHAT, **{field: ["x"]}).status_code == 400


def test_a_request_id_in_the_body_is_the_one_in_the_decision_log(serve):
    live = serve(script=PLAIN)
    assert post(live, CHAT, request_id="mine-1").status_code == 200
    assert live.records()[-1]["request_id"] == "mine-1"
    assert post(live, CHAT, request_id="not valid").json()["error"]["param"] == "request_id"


def test_obfuscation_makes_chunks_of_one_size_out_of_tokens_of_many(serve):
    live = serve(script=Script(["a", " longer", " much-longer-than"], scores(), scores()))
    plain = list(live.chat(stream=True))
    assert not any(chunk.obfuscation for chunk in plain)
    chunks = list(live.chat(stream=True, stream_options={"include_obfuscation": True}))
    sizes = {
        len(chunk.choices[0].delta.content) + len(chunk.obfuscation)
        for chunk in chunks
        if chunk.choices[0].delta.content
    }
    assert sizes == {32}
    refused = post(live, CHAT, stream=True, stream_options={"continuous_usage_stats": True})
    assert refused.json()["error"]["param"] == "stream_options.continuous_usage_stats"


def test_a_blocked_text_completion_names_its_own_field(serve):
    policy = """
apiVersion: interlock/v1
kind: Policy
metadata: {name: p, version: "1"}
rules:
  - {id: block, when: max(prompt.harm) > 0.5, then: {block: {message: "Withheld."}}}
tests:
  - {name: t, given: {prompt: {harm: "0.9"}}, expect: {action: block}}
"""
    live = serve(policy, Script(WORDS, scores(harm={2: 0.9}), scores()))
    assert post(live, TEXT).json()["error"]["param"] == "prompt"
    assert post(live, CHAT).json()["error"]["param"] == "messages"


def test_the_type_of_a_part_is_named_where_it_stands_and_not_repeated(serve):
    parts = [{"type": "text", "text": "x"}, {"type": "my secret"}]
    reply = post(serve(script=PLAIN), CHAT, messages=[{"role": "user", "content": parts}])
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "messages.0.content"
    assert "messages.0.content.1: type must be one of 'text', 'refusal'" in reply.json()["error"]["message"]
    assert "secret" not in reply.text
