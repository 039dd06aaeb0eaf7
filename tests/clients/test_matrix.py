"""Five clients, one table of expectations: what each makes of what the server sends, and of what the guard does."""

import json
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime

import openai
import pytest
import torch

from server.engines.scripted import Script, ScriptedEngine
from server.engines.transformers.engine import EngineSettings, TransformersEngine
from server.engines.transformers.model import prepare
from server.keys.store import KeyStore
from server.scheduling.line import Line
from server.tokenizer import ModelTokenizer
from tests.e2e.conftest import ALLOW_ONLY, scores
from tests.e2e.test_keys import key, key_file
from tests.e2e.test_openai_surface import BLOCK_PROMPT, BLOCK_RESPONSE, PLAIN, WORDS
from tests.e2e.test_tools import CALLING, TEMPLATE, WEATHER
from tests.integration.conftest import monitors_for
from tests.tiny_models import TINY
from tests.tiny_tokenizer import tiny_tokenizer
from tests.waiting import until

TEXT = "".join(WORDS)
CUT = "Once upon a time"  # what may leave before the fifth word is withheld
BAD_PROMPT = Script(WORDS, scores(harm={2: 0.9}), scores())
BAD_REPLY = Script(WORDS, scores(), scores(harm={4: 0.9}))
ASKS = [("chat", False), ("chat", True), ("completion", False), ("completion", True)]
asked = pytest.mark.parametrize(
    ("do", "stream"), ASKS, ids=["chat", "chat-streamed", "text", "text-streamed"]
)


@asked
def test_a_reply(serve, client, do, stream):
    live = serve(script=PLAIN)
    told = client.ask(do, f"{live.url}/v1", stream=stream)
    assert_told(told, text=TEXT, finish="stop")
    if (do, stream) == ("chat", False):
        assert told["usage"] == len(WORDS)
        assert told["call"] is None


@pytest.fixture(scope="module")
def tiny():
    return prepare(TINY["llama"](), tiny_tokenizer(), model_id="tiny")


@asked
def test_a_real_models_reply_is_what_transformers_says(serve, client, tiny, do, stream):
    engine = TransformersEngine(tiny, monitors_for(tiny), EngineSettings(max_batch=4))
    policy = ALLOW_ONLY.replace("harm", "cosine")
    live = serve(policy, engine=engine, tokenizer=ModelTokenizer(tiny.tokenizer))
    greedy = {"temperature": 0, "max_tokens": 12}
    told = client.ask(do, f"{live.url}/v1", model="tiny", text="hi there", stream=stream, options=greedy)
    prompt = "<bos><user>hi there<assistant>" if do == "chat" else "hi there"
    assert told["text"] == plainly(tiny, prompt, 12)


@torch.inference_mode()
def plainly(tiny, prompt, num_tokens):
    ids = tiny.tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    said = tiny.model.generate(ids, do_sample=False, max_new_tokens=num_tokens)[0, ids.shape[1] :]
    return tiny.tokenizer.decode(said, skip_special_tokens=True)


@asked
def test_a_reply_that_is_cut_says_so(serve, client, do, stream):
    live = serve(script=PLAIN)
    told = client.ask(do, f"{live.url}/v1", stream=stream, options={"max_tokens": 3})
    assert_told(told, text="Once upon a", finish="length")


@pytest.mark.parametrize("do", ["chat", "completion"])
def test_the_first_piece_comes_before_the_last_is_made(serve, client, do, first_piece):
    """The engine holds from the second token on until the client has seen the first: who buffers hangs."""
    live = serve(script=replace(PLAIN, hold=first_piece, hold_from=1))
    pieces = []

    def on_piece(text):
        pieces.append(text)
        if text:
            first_piece.set()

    told = client.ask(do, f"{live.url}/v1", stream=True, on_piece=on_piece)
    assert told["text"] == TEXT
    assert next(filter(None, pieces)) == "Once"
    assert "".join(pieces) == TEXT


@asked
def test_a_blocked_prompt_is_an_error_with_its_code_and_is_not_asked_again(serve, client, do, stream):
    played = Counted(BAD_PROMPT)
    live = serve(BLOCK_PROMPT, played)
    told = client.ask(do, f"{live.url}/v1", stream=stream, retries=2)
    assert_error(client, told, 400, "content_filter", "Withheld.")
    assert played.times == 1


def test_a_prompt_that_is_blocked_as_misaligned_is_a_403(serve, client):
    policy = BLOCK_PROMPT.replace('message: "Withheld."', "code: misalignment_policy_violation")
    played = Counted(BAD_PROMPT)
    live = serve(policy, played)
    told = client.ask("chat", f"{live.url}/v1", retries=2)
    assert_error(client, told, 403, "misalignment_policy_violation", "blocked by policy")
    assert played.times == 1


def test_a_reply_that_is_blocked_in_mid_stream_keeps_what_was_sent_and_says_why_it_ended(serve, client):
    live = serve(BLOCK_RESPONSE, BAD_REPLY)
    pieces = []
    told = client.ask("chat", f"{live.url}/v1", stream=True, on_piece=pieces.append)
    assert_told(told, text=CUT, finish="content_filter")
    assert "".join(pieces) == CUT
    assert told["refusal"] == (None if client.name in DROPS_STREAMED_REFUSALS else "Withheld.")
    text = client.ask("completion", f"{live.url}/v1", stream=True)
    assert_told(text, text=CUT, finish="content_filter")


def test_openais_own_helpers_raise_where_a_reply_was_blocked(serve):
    """`stream` and `parse` want the whole reply; `create` does not mind."""
    live = serve(BLOCK_RESPONSE, BAD_REPLY)
    ask = {"model": live.model, "messages": [{"role": "user", "content": "hello"}]}
    with pytest.raises(openai.ContentFilterFinishReasonError):
        live.client.chat.completions.parse(**ask)
    blocked = pytest.raises(openai.ContentFilterFinishReasonError)
    with live.client.chat.completions.stream(**ask) as stream, blocked:
        stream.get_final_completion()


def test_a_whole_reply_that_is_blocked_is_a_refusal(serve, client):
    live = serve(BLOCK_RESPONSE, BAD_REPLY)
    told = client.ask("chat", f"{live.url}/v1")
    assert (told["text"] or "", told["finish"]) == ("", "content_filter")
    assert told["refusal"] == "Withheld."


def test_a_replaced_reply_is_a_reply(serve, client):
    policy = BLOCK_PROMPT.replace("block: {", "replace: {").replace("action: block", "action: replace")
    live = serve(policy, BAD_PROMPT)
    for stream in (False, True):
        told = client.ask("chat", f"{live.url}/v1", stream=stream)
        assert_told(told, text="Withheld.", finish="stop")


@pytest.mark.parametrize("do", ["chat", "completion"])
def test_a_failure_in_mid_stream_is_raised_and_never_looks_like_the_end_of_a_reply(serve, client, do):
    live = serve(script=Script(WORDS, scores(), scores(), fail_at=3))
    told = client.ask(do, f"{live.url}/v1", stream=True)
    assert "The model failed on this request." in told["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_of_a_tool(serve, client, stream):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    engine = ScriptedEngine(lambda _: CALLING, ("harm", "deception"))
    live = serve(ALLOW_ONLY, engine=engine, tokenizer=ModelTokenizer(tokenizer))
    told = client.ask("chat", f"{live.url}/v1", text="hi", stream=stream, tools=[WEATHER])
    assert (told["text"], told["finish"], told["call"]["name"]) == ("Let me see.", "tool_calls", "weather")
    arguments = told["call"]["arguments"]
    assert (json.loads(arguments) if isinstance(arguments, str) else arguments) == {"city": "Bern"}


def test_a_wrong_key_is_an_authentication_error_and_a_right_one_is_let_in(serve, client, tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text(key_file())
    live = serve(script=PLAIN, service_options={"keys": KeyStore(path, lambda: datetime.now(UTC))})
    told = client.ask("chat", f"{live.url}/v1", key="ilk_acme_wrong", retries=2)
    assert_error(client, told, 401, "invalid_api_key", "A valid API key is needed")
    assert_told(client.ask("chat", f"{live.url}/v1", key=key("acme")), text=TEXT, finish="stop")


def test_a_client_comes_again_after_as_long_as_a_full_server_says(serve, client):
    """One place, which another request holds until the client was turned away."""
    gate = threading.Event()
    live = serve(script=replace(PLAIN, hold=gate), service_options={"line": Line(slots=1, max_waiting=0)})
    told = {}

    def ask():
        began = time.monotonic()
        told.update(client.ask("chat", f"{live.url}/v1", retries=2), took_s=time.monotonic() - began)

    occupying = threading.Thread(target=live.chat)
    asking = threading.Thread(target=ask)
    try:
        occupying.start()
        until(lambda: live.service.line.running == 1)
        asking.start()
        until(lambda: live.metric("interlock_shed_total", reason="queue_full") >= 1)
    finally:
        gate.set()
    asking.join(timeout=120)
    occupying.join(timeout=120)
    assert_told(told, text=TEXT, finish="stop")
    assert (
        told["took_s"] >= 1
    )  # the least that Retry-After says; by themselves these clients wait half of that


def test_a_client_is_told_not_to_come_again_where_that_is_of_no_use(serve, client):
    """The guard could not judge. curl knows no such header."""
    played = Counted(Script(WORDS, {}, {}))
    live = serve(BLOCK_RESPONSE, played)
    told = client.ask("chat", f"{live.url}/v1", retries=0 if client.name == "curl" else 2)
    assert_error(client, told, 503, "interlock_unavailable", "could not judge")
    assert played.times == 1


def test_the_models_list(serve, client):
    if client.name == "langchain":
        pytest.skip("langchain lists no models")
    live = serve(script=PLAIN)
    assert client.ask("models", f"{live.url}/v1") == {"models": ["scripted"]}


# --- what differs -----------------------------------------------------------------------------------------------------

KINDS = {  # the classes that the clients have for a status
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    503: "InternalServerError",
}
OTHER_KINDS = {
    ("litellm", 403): "APIError",
    ("litellm", 503): "ServiceUnavailableError",
    **{("curl", status): "HttpError" for status in KINDS},
}
DROPS_CODES = {"litellm"}  # of all errors but a 400 to a chat
DROPS_STREAMED_REFUSALS = {"litellm", "langchain"}


def assert_told(told, *, text, finish):
    assert told.get("text") == text, told
    if "finish" in told:  # langchain's text model streams nothing but the text
        assert told["finish"] == finish


def assert_error(client, told, status, code, message):
    error = told["error"]
    assert error["status"] == status, error
    assert message in error["message"]
    assert error["code"] == code or (error["code"] is None and client.name in DROPS_CODES)
    assert OTHER_KINDS.get((client.name, status), KINDS[status]) in error["kinds"]


class Counted:
    """A script, and how often it was asked for."""

    def __init__(self, script):
        self._script = script
        self.times = 0

    def __call__(self, request):
        self.times += 1
        return self._script
