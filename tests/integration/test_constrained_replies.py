"""Replies that are held to a grammar, in the in-process engine: the rest of the batch, scores and sampling stay what they were."""

import asyncio
import json
from concurrent.futures import Executor, Future
from contextlib import aclosing
from dataclasses import replace
from functools import partial

import jsonschema
import numpy as np
import pytest
import torch

from guard.types import Phase
from server.engines.base import EngineRequest, FinishReason, RequestRefused, SamplingParams, SteerCommand
from server.engines.transformers.engine import EngineSettings, TransformersEngine
from server.engines.transformers.model import prepare
from server.grammars.source import Form
from tests.integration.conftest import monitors_for, plain_values
from tests.integration.test_transformers_engine import everything_is_free, run, text, token_ids, values
from tests.json_tokenizer import json_tokenizer
from tests.tiny_models import TINY

pytestmark = pytest.mark.anyio

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
PROMPT = [1, 9, 30, 41]
NEIGHBOURS = [list(range(6, 46)), [1, 20, 33, 8, 8, 51], [3] * 25]
FREE = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def model():
    return prepare(TINY["llama"](max_position_embeddings=512), json_tokenizer(), model_id="tiny")


@pytest.fixture
async def start(model):
    engines = []

    async def started(**sizes):
        settings = {"max_batch": 4, "prefill_chunk": 7, "prefix_cache_tokens": 0, **sizes}
        engine = TransformersEngine(model, monitors_for(model), EngineSettings(**settings))
        await engine.start()
        engines.append(engine)
        return engine

    yield started
    for engine in engines:
        await engine.stop()


async def held_to(engine, schema=SCHEMA, **params):
    grammar = await engine.compile(Form(answer=schema).source())
    return SamplingParams(**{"max_tokens": 200, "seed": 1, "grammar": grammar, **params})


def check(outputs, schema=SCHEMA):
    """The reply is whole and valid."""
    assert outputs[-1].finish is FinishReason.STOP
    jsonschema.validate(json.loads(text(outputs)), schema)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0},
        {"temperature": 1.5},
        {"top_k": 2, "top_p": 0.5, "min_p": 0.1},
        {"frequency_penalty": 2.0, "presence_penalty": 2.0, "repetition_penalty": 1.5},
        {"logit_bias": {2: 100.0, 6: -100.0, 60: 100.0}},
        {"logprobs": 3},
        {"temperature": 0, "logprobs": 0},
    ],
)
async def test_a_reply_keeps_to_its_schema_however_it_is_drawn(start, params):
    """A bias of 100 for the end of the text, or of -100 for a brace that must come, changes nothing about that."""
    engine = await start()
    check(await run(engine, "r", PROMPT, await held_to(engine, **params)))


async def test_every_token_of_it_is_scored_as_in_a_plain_pass(start, model):
    engine = await start()
    outputs = await run(engine, "r", PROMPT, await held_to(engine))
    ids = token_ids(outputs)
    response = [output for output in outputs if output.phase is Phase.RESPONSE]
    assert [output.num_scored for output in response] == [1] * len(ids) + [0]  # the end is not shown
    got, want = values(outputs), plain_values(model, engine.monitors, [*PROMPT, *ids])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


async def test_neighbours_draw_what_they_draw_alone(start):
    engine = await start(max_batch=5)
    seeded = SamplingParams(max_tokens=20, seed=3, ignore_eos=True)
    alone = [await run(engine, f"a{i}", p, s) for i, p in enumerate(NEIGHBOURS) for s in (FREE,)]
    alone_seeded = await run(engine, "as", NEIGHBOURS[0], seeded)
    sampling = await held_to(engine)
    alone_held = await run(engine, "ah", PROMPT, sampling)
    held, drawn, *together = await asyncio.gather(
        run(engine, "h", PROMPT, sampling),
        run(engine, "s", NEIGHBOURS[0], seeded),
        *(run(engine, f"n{i}", prompt, FREE) for i, prompt in enumerate(NEIGHBOURS)),
    )
    assert token_ids(held) == token_ids(alone_held)
    assert token_ids(drawn) == token_ids(alone_seeded)
    for one, other in zip(together, alone, strict=True):
        assert token_ids(one) == token_ids(other)
        np.testing.assert_allclose(values(one), values(other), rtol=1e-5, atol=1e-4)


class Gated(Executor):
    """Does nothing before it is opened: masks that don't come."""

    def __init__(self, threads):
        self._threads = threads
        self._waiting = []

    def submit(self, function, /, *args):
        future = Future()
        self._waiting.append((future, partial(function, *args)))
        return future

    def open(self):
        waiting, self._waiting = self._waiting, []
        self.submit = self._threads.submit
        for future, call in waiting:
            future.set_result(call())


async def test_a_mask_that_takes_long_holds_up_its_own_row_and_no_other(start):
    engine = await start()
    sampling = await held_to(engine)
    alone = token_ids(await run(engine, "a", PROMPT, sampling))
    gate = Gated(sampling.grammar.threads)
    slow = asyncio.create_task(
        run(engine, "slow", PROMPT, replace(sampling, grammar=replace(sampling.grammar, threads=gate)))
    )
    await asyncio.sleep(0)
    others = await asyncio.gather(*(run(engine, f"n{i}", p, FREE) for i, p in enumerate(NEIGHBOURS)))
    assert all(outputs[-1].finish is FinishReason.LENGTH for outputs in others)
    assert not slow.done()
    gate.open()
    assert token_ids(await slow) == alone


async def test_a_row_whose_mask_never_comes_can_be_given_up(start):
    engine = await start()
    sampling = await held_to(engine)
    gate = Gated(sampling.grammar.threads)
    sampling = replace(sampling, grammar=replace(sampling.grammar, threads=gate))
    async with aclosing(engine.generate(EngineRequest("r", PROMPT, sampling))) as steps:
        left = asyncio.ensure_future(anext(steps))
        await asyncio.sleep(0.05)
        left.cancel()
        await asyncio.wait([left])
    await everything_is_free(engine)
    gate.open()  # nobody is there any more


async def test_seeds_repeat_and_differ(start):
    engine = await start()
    first, again, other = [
        await run(engine, f"r{i}", PROMPT, await held_to(engine, seed=seed))
        for i, seed in enumerate((1, 1, 2))
    ]
    assert token_ids(first) == token_ids(again) != token_ids(other)


async def test_a_prefix_cache_hit_changes_nothing(start):
    engine = await start(prefix_cache_tokens=1024)
    prompt = [6 + i % 50 for i in range(80)]
    sampling = await held_to(engine)
    first, again = [await run(engine, name, prompt, sampling) for name in ("a", "b")]
    assert engine._stepper.prefix_cache.hits
    assert token_ids(again) == token_ids(first)
    np.testing.assert_allclose(values(again), values(first), rtol=1e-5, atol=1e-5)


async def test_steering_changes_what_is_said_and_not_its_form(start):
    engine = await start()
    sampling = await held_to(engine)
    plain = await run(engine, "p", PROMPT, sampling)
    steered = await run(engine, "s", PROMPT, sampling, steer={0: SteerCommand("push", 5.0)})
    check(steered)
    assert not np.allclose(values(steered)[:8], values(plain)[:8])


async def test_log_probabilities_are_those_of_the_model_before_the_mask(start, model):
    engine = await start()
    sampling = await held_to(engine, logprobs=2)
    outputs = await run(engine, "r", PROMPT, sampling)
    ids = token_ids(outputs)
    with torch.inference_mode():
        logits = model.model(input_ids=torch.tensor([[*PROMPT, *ids]])).logits[0]
    want = torch.log_softmax(logits.float(), dim=-1)
    tokens = [token for output in outputs for token in output.tokens]
    for index, token in enumerate(tokens):
        row = want[len(PROMPT) - 1 + index]
        assert token.logprob.logprob == pytest.approx(float(row[token.token_id]), abs=1e-4)
        assert token.top_logprobs[0].token_id == int(row.argmax())


async def test_it_may_be_cut_by_length_a_stop_string_or_a_stop_token(start):
    engine = await start()
    whole = text(await run(engine, "w", PROMPT, await held_to(engine)))
    cut = await run(engine, "l", PROMPT, await held_to(engine, max_tokens=5))
    assert cut[-1].finish is FinishReason.LENGTH
    assert whole.startswith(text(cut))
    stopped = await run(engine, "s", PROMPT, await held_to(engine, stop=('"age"',)))
    assert stopped[-1].finish is FinishReason.STOP
    assert text(stopped) == whole.partition('"age"')[0]
    bracket = engine._loaded.tokenizer.convert_tokens_to_ids("[")
    ended = await run(engine, "t", PROMPT, await held_to(engine, stop_token_ids=(bracket,)))
    assert text(ended) == whole.partition("[")[0]


async def test_a_grammar_that_gives_out_ends_its_own_request_alone(start):
    """More alternatives come after the brace than are followed; nothing says so before it is written."""
    wide = {"type": "object", "properties": {f"secret{i}": {"type": "null"} for i in range(1000)}}
    engine = await start()
    brace = dict.fromkeys(engine._loaded.tokenizer("{", add_special_tokens=False)["input_ids"], 100.0)
    sampling = await held_to(engine, {"anyOf": [{"type": "null"}, wide]}, logit_bias=brace)
    alone = await run(engine, "a", NEIGHBOURS[0], FREE)
    failing = asyncio.create_task(run(engine, "f", PROMPT, sampling))
    other = await run(engine, "n", NEIGHBOURS[0], FREE)
    with pytest.raises(RequestRefused, match="too complex") as told:
        await failing
    assert "secret" not in str(told.value)
    assert token_ids(other) == token_ids(alone)
    await everything_is_free(engine)
