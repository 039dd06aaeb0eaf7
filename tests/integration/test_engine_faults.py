"""One request's trouble stays its own."""

import asyncio
import threading
from itertools import count

import numpy as np
import pytest
import torch

from server.engines.base import EngineDead, EngineError, EngineRequest, SamplingParams, StepOutput
from server.engines.detokenize import SettledText
from server.engines.transformers.kv import _SlotLayer
from tests.integration.test_transformers_engine import (
    GREEDY,
    PROMPTS,
    everything_is_free,
    run,
    token_ids,
    values,
)

pytestmark = pytest.mark.anyio


async def outcome(engine, request_id, prompt, sampling=GREEDY):
    try:
        return await run(engine, request_id, prompt, sampling)
    except EngineError as error:
        return error


async def test_a_row_whose_text_fails_does_not_disturb_its_neighbours(start_engine, monkeypatch):
    engine = await start_engine("llama")
    alone = await run(engine, "alone", PROMPTS[2])
    push = SettledText.push
    bad: list[SettledText] = []

    def failing(self, token):
        if self in bad and token.token_id >= 0 and len(self._waiting) == 0 and bad.count(self) < 4:
            bad.append(self)
            if bad.count(self) == 4:
                raise RuntimeError("the detokeniser fails here")
        return push(self, token)

    monkeypatch.setattr(SettledText, "push", failing)
    sequence_of = engine._sequence

    def marking(request):
        sequence = sequence_of(request)
        if request.request_id == "bad":
            bad.append(sequence.text)
        return sequence

    monkeypatch.setattr(engine, "_sequence", marking)
    results = await asyncio.gather(
        outcome(engine, "a", PROMPTS[2]), outcome(engine, "bad", PROMPTS[0]), outcome(engine, "b", PROMPTS[2])
    )
    assert isinstance(results[1], EngineError)
    for result in (results[0], results[2]):
        assert token_ids(result) == token_ids(alone)
        np.testing.assert_allclose(values(result), values(alone), rtol=1e-5, atol=1e-5)
    await everything_is_free(engine)
    await engine.stop()


async def test_a_forward_pass_that_fails_is_tried_row_by_row(start_engine, monkeypatch):
    engine = await start_engine("llama")
    alone = await run(engine, "alone", PROMPTS[2])
    decode = engine._stepper._forward.decode

    def failing(first_row, ids, positions):
        if 6 in positions:  # only the request with the shortest prompt comes by here
            raise RuntimeError("the model fails here")
        return decode(first_row, ids, positions)

    monkeypatch.setattr(engine._stepper._forward, "decode", failing)
    bad, good = await asyncio.gather(outcome(engine, "bad", PROMPTS[0]), outcome(engine, "good", PROMPTS[2]))
    assert isinstance(bad, EngineError)
    assert token_ids(good) == token_ids(alone)
    await everything_is_free(engine)
    await engine.stop()


async def test_values_that_are_not_finite_do_not_poison_the_next_occupant_of_a_row(loaded, start_engine):
    engine = await start_engine("llama", max_batch=2, prefix_cache_tokens=1024)
    alone = await run(engine, "alone", PROMPTS[2])
    embedding = loaded("llama").model.get_input_embeddings().weight
    kept = embedding[60].clone()
    try:
        with torch.no_grad():
            embedding[60] = float("nan")
        poisoned = await outcome(engine, "poison", [*range(6, 45), 60])
        assert isinstance(poisoned, EngineError)
    finally:
        with torch.no_grad():
            embedding[60] = kept
    after, _ = await asyncio.gather(
        outcome(engine, "after", PROMPTS[2]), outcome(engine, "longer", list(range(6, 46)))
    )
    assert token_ids(after) == token_ids(alone)
    await engine.stop()


async def test_a_prompt_that_is_paused_does_not_hold_up_the_next(start_engine):
    engine = await start_engine("llama")
    alone = [await run(engine, f"alone{i}", PROMPTS[i]) for i in (1, 2)]
    stream = engine.generate(EngineRequest("paused", PROMPTS[1], GREEDY))
    paused = [await anext(stream)]  # its first chunk, of six
    other = await asyncio.wait_for(run(engine, "other", PROMPTS[2]), timeout=60)
    assert token_ids(other) == token_ids(alone[1])
    paused += [output async for output in stream]
    assert token_ids(paused) == token_ids(alone[0])
    np.testing.assert_allclose(values(paused), values(alone[0]), rtol=1e-5, atol=1e-5)
    await engine.stop()


async def test_a_paused_row_at_full_context_disturbs_nobody(loaded, start_engine):
    """GPT-2 has a table of positions: a filler token beyond it would fail the batch."""
    engine = await start_engine("gpt2", prefill_chunk=200)
    full = [5 + i % 50 for i in range(engine.info.max_context)]
    stream = engine.generate(EngineRequest("full", full, SamplingParams(max_tokens=0)))
    first = await anext(stream)
    assert first.final
    other = await run(engine, "other", PROMPTS[2])
    assert len(token_ids(other)) == 12
    rest: list[StepOutput] = [output async for output in stream]
    assert rest[-1].finish == "length"
    await engine.stop()


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(logit_bias={9999: 5.0}),
        SamplingParams(logit_bias={-1: 5.0}),
        SamplingParams(stop_token_ids=(10**6,)),
    ],
)
async def test_token_ids_outside_the_vocabulary_are_refused(start_engine, sampling):
    engine = await start_engine("llama")
    refused = await outcome(engine, "r", PROMPTS[0], sampling)
    assert isinstance(refused, EngineError)
    assert "vocabulary" in str(refused)
    await engine.stop()


async def test_running_out_of_memory_fails_one_request_and_the_others_go_on(start_engine, monkeypatch):
    engine = await start_engine("llama")
    alone = await run(engine, "alone", PROMPTS[2])
    forward = engine._stepper._forward
    prefill, decode = forward.prefill, forward.decode

    def big_prefill(row, start, ids, **options):
        if list(ids) == PROMPTS[0][: len(ids)]:
            raise torch.OutOfMemoryError("the prompt is too large")
        return prefill(row, start, ids, **options)

    def big_batch(first_row, ids, positions):
        if len(ids) > 1:
            raise torch.OutOfMemoryError("the batch is too large")
        return decode(first_row, ids, positions)

    monkeypatch.setattr(forward, "prefill", big_prefill)
    monkeypatch.setattr(forward, "decode", big_batch)
    big, *small = await asyncio.gather(
        outcome(engine, "big", PROMPTS[0]), outcome(engine, "a", PROMPTS[2]), outcome(engine, "b", PROMPTS[2])
    )
    assert isinstance(big, EngineError)
    assert "too large" not in str(big)
    for result in small:
        assert token_ids(result) == token_ids(alone)
    monkeypatch.undo()
    assert token_ids(await run(engine, "after", PROMPTS[2])) == token_ids(alone)
    await everything_is_free(engine)
    await engine.stop()


async def test_a_step_that_hangs_fails_who_waits_and_when_it_ends_all_goes_on(start_engine, monkeypatch):
    engine = await start_engine("llama", step_timeout_s=2.0)
    alone = await run(engine, "alone", PROMPTS[2])
    gate = threading.Event()
    step = engine._stepper.step

    def gated(ready):
        gate.wait(60)
        return step(ready)

    monkeypatch.setattr(engine._stepper, "step", gated)
    waiting = [asyncio.create_task(run(engine, f"r{i}", PROMPTS[2])) for i in range(6)]  # more than rows
    results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 30)
    assert all(isinstance(result, EngineDead) for result in results)
    assert isinstance(await outcome(engine, "late", PROMPTS[2]), EngineDead)  # at once
    gate.set()
    await everything_is_free(engine)
    assert token_ids(await run(engine, "after", PROMPTS[2])) == token_ids(alone)
    await engine.stop()


async def test_a_step_that_never_ends_does_not_keep_the_engine_from_stopping(start_engine, monkeypatch):
    engine = await start_engine("llama", step_timeout_s=2.0)
    monkeypatch.setattr("server.engines.transformers.engine._STOP_S", 0.1)
    gate = threading.Event()
    monkeypatch.setattr(engine._stepper, "step", lambda ready: gate.wait(60) and [])
    assert isinstance(await outcome(engine, "a", PROMPTS[2]), EngineDead)
    await asyncio.wait_for(engine.stop(), 30)
    assert not engine.is_alive
    gate.set()


async def test_memory_that_runs_out_while_the_cache_is_allocated_fails_one_request(start_engine, monkeypatch):
    """The cache comes with the first request."""
    engine = await start_engine("llama")
    allocate, calls = _SlotLayer.lazy_initialization, count()

    def short_once(self, *states):
        if next(calls) == 1:  # the second layer's, when the first one's is there
            raise torch.OutOfMemoryError("tried to allocate")
        allocate(self, *states)

    monkeypatch.setattr(_SlotLayer, "lazy_initialization", short_once)
    assert isinstance(await outcome(engine, "first", PROMPTS[2]), EngineError)
    await everything_is_free(engine)
    second = await run(engine, "second", PROMPTS[2])
    assert token_ids(second) == token_ids(await run(engine, "third", PROMPTS[2]))
    await engine.stop()
