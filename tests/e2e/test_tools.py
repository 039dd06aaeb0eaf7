"""Tools: shown through the chat template, their calls read out of the reply, and guarded like all of it."""

import json

import pytest

from server.engines.scripted import Script, ScriptedEngine
from server.tokenizer import ModelTokenizer
from tests.e2e.conftest import ALLOW_ONLY, scores
from tests.e2e.test_openai_surface import BLOCK_RESPONSE
from tests.tiny_tokenizer import tiny_tokenizer

TEMPLATE = (
    "<bos>{% if tools %}<system>{% for t in tools %}{{ t.function.name }}. {% endfor %}{# <tool_call></tool_call> #}{% endif %}"
    "{% for m in messages %}{{ '<' + ('user' if m.role == 'tool' else m.role) + '>' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name + ':' + c.function.arguments.city }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
TOKENS = [
    "Let",
    " me see.",
    "<tool",
    '_call>{"name": "wea',
    'ther", "arguments": {"city": "Bern"}}',
    "</tool_call>",
]
CALLING = Script(TOKENS, scores(), scores())


@pytest.fixture
def serve_tools(serve):
    def start(policy=ALLOW_ONLY, script=CALLING, template=TEMPLATE):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = template
        shown = []

        def played(request):
            shown.append("".join(tokenizer.convert_ids_to_tokens(request.prompt_ids)))
            return script

        engine = ScriptedEngine(played, ("harm", "deception"))
        return serve(policy, engine=engine, tokenizer=ModelTokenizer(tokenizer)), shown

    return start


def test_tools_are_shown_and_a_call_comes_back(serve_tools):
    live, shown = serve_tools()
    choice = live.chat("hi", tools=[WEATHER]).choices[0]
    assert shown == ["<bos><system>weather. <user>hi<assistant>"]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "weather")
    assert json.loads(call.function.arguments) == {"city": "Bern"}
    assert call.id.startswith("call_")


def test_a_streamed_call_is_the_same_call(serve_tools):
    live, _ = serve_tools()
    chunks = list(live.chat("hi", tools=[WEATHER], stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "Let me see."
    (call,) = [call for delta in deltas for call in delta.tool_calls or []]
    assert (call.index, call.function.name) == (0, "weather")
    assert json.loads(call.function.arguments) == {"city": "Bern"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_history_of_calls_and_results_reaches_the_template(serve_tools):
    live, shown = serve_tools()
    said = live.chat("hi", tools=[WEATHER]).choices[0].message
    result = {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": "rain"}
    messages = [{"role": "user", "content": "hi"}, said.model_dump(), result]
    live.client.chat.completions.create(model=live.model, messages=messages, tools=[WEATHER])
    assert (
        shown[-1] == "<bos><system>weather. <user>hi<assistant>Let me see.weather:Bern<user>rain<assistant>"
    )


def test_tool_choice_none_shows_no_tools_and_reads_no_calls(serve_tools):
    live, shown = serve_tools()
    choice = live.chat("hi", tools=[WEATHER], tool_choice="none").choices[0]
    assert shown == ["<bos><user>hi<assistant>"]
    assert (choice.finish_reason, choice.message.tool_calls) == ("stop", None)
    assert choice.message.content == "".join(TOKENS)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_whose_token_is_blocked_never_leaves(serve_tools, stream):
    """The tag closes with the last token; what blocks it blocks the call."""
    live, _ = serve_tools(BLOCK_RESPONSE, Script(TOKENS, scores(), scores(harm={5: 0.9})))
    body = {"model": live.model, "messages": [{"role": "user", "content": "hi"}], "tools": [WEATHER]}
    reply = live.http.post("/v1/chat/completions", json={**body, "stream": stream})
    assert "content_filter" in reply.text
    assert "Bern" not in reply.text
    assert '"tool_calls"' not in reply.text


def test_a_reply_that_is_cut_in_a_call_is_no_call(serve_tools):
    live, _ = serve_tools()
    choice = live.chat("hi", tools=[WEATHER], max_tokens=4).choices[0]
    assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)
    assert choice.message.content == "".join(TOKENS[:4])


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, "tool_choice"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "tools"),
        ({"tools": None, "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": "any"}, "tool_choice"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
            "tools.0.function.parameters",
        ),
        ({"tools": [{"type": "code_interpreter"}]}, "tools.0.type"),
        ({"messages": [{"role": "tool", "content": "my secret"}]}, "messages.0"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "my secret"}}],
                    }
                ]
            },
            "messages.0.tool_calls.0.function.arguments",
        ),
    ],
)
def test_what_can_not_be_kept_is_refused_by_name(serve_tools, change, param):
    """The engine plays a script, so it can't hold the reply to anything."""
    live, _ = serve_tools()
    body = {
        "model": live.model,
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [WEATHER],
        **change,
    }
    reply = live.http.post("/v1/chat/completions", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert "secret" not in reply.text


@pytest.mark.parametrize(
    "change",
    [
        {"tools": [WEATHER]},
        {"messages": [{"role": "tool", "tool_call_id": "1", "content": "my secret"}]},
    ],
)
def test_a_model_that_is_not_told_of_tools_refuses_them(serve_tools, change):
    live, shown = serve_tools(template=TEMPLATE.replace("tool_call>", "call>"))
    body = {"model": live.model, "messages": [{"role": "user", "content": "hi"}], **change}
    reply = live.http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 400
    assert "chat template" in reply.json()["error"]["message"]
    assert reply.json()["error"]["param"] in change
    assert shown == []
