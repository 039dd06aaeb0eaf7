"""The in-process engine against plain forward passes of the same model."""

import asyncio
from contextlib import aclosing

import numpy as np
import pytest
import torch

from guard.types import Phase
from monitors.artifacts import MonitorSet
from monitors.layout import Picker
from server.engines.base import (
    EngineRequest,
    FinishReason,
    RequestRefused,
    SamplingParams,
    SteerCommand,
    StepOutput,
)
from tests.integration.conftest import monitors_for, plain_values
from tests.tiny_models import TINY

pytestmark = pytest.mark.anyio

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
PROMPTS = [[1, 9, 30, 41], list(range(6, 46)), [1, 20, 33, 8, 8, 51, 60, 12, 13], [3] * 25, [1, 2, 3]]


async def run(engine, request_id, prompt, sampling=GREEDY, steer=None) -> list[StepOutput]:
    """All steps of one request. `steer`: {index of the output after which: command}."""
    outputs = []
    async with aclosing(engine.generate(EngineRequest(request_id, prompt, sampling))) as steps:
        async for output in steps:
            outputs.append(output)
            if steer and len(outputs) - 1 in steer:
                engine.steer(request_id, steer[len(outputs) - 1])
    return outputs


async def everything_is_free(engine):
    """Within a few turns of the loop the engine holds nothing."""
    for _ in range(50):
        load = engine.load()
        if not engine._running and (load.running, load.waiting, load.kv_tokens) == (0, 0, 0):
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"still held: {load}, {list(engine._running)}")


def token_ids(outputs):
    return [token.token_id for output in outputs for token in output.tokens]


def text(outputs):
    return "".join(token.text for output in outputs for token in output.tokens)


def values(outputs):
    return np.concatenate([output.values for output in outputs if output.num_scored])


@torch.inference_mode()
def plain_greedy(loaded, prompt, count):
    ids = list(prompt)
    for _ in range(count):
        logits = loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


async def gather(engine, prompts=PROMPTS, **kwargs):
    return await asyncio.gather(*(run(engine, f"r{i}", prompt, **kwargs) for i, prompt in enumerate(prompts)))


@pytest.mark.parametrize("name", TINY)
async def test_scores_and_tokens_of_concurrent_requests_equal_a_plain_forward_pass(
    name, loaded, start_engine
):
    """Mixed lengths, more requests than rows, chunked prefill: every score of prompt and response, and every token."""
    engine = await start_engine(name)
    model = loaded(name)
    for prompt, outputs in zip(PROMPTS, await gather(engine), strict=True):
        ids = token_ids(outputs)
        assert ids == plain_greedy(model, prompt, 12)
        got, want = values(outputs), plain_values(model, engine.monitors, [*prompt, *ids])
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    await engine.stop()


async def test_every_response_token_comes_with_its_own_scores(start_engine):
    engine = await start_engine("llama")
    outputs = await run(engine, "r", PROMPTS[0])
    response = [output for output in outputs if output.phase is Phase.RESPONSE]
    assert [output.start for output in response] == list(range(12))
    assert all(output.num_scored == 1 and len(output.tokens) == 1 for output in response)
    assert response[-1].finish is FinishReason.LENGTH
    await engine.stop()


async def test_a_prefix_cache_hit_gives_the_same_scores_and_tokens(loaded, start_engine):
    engine = await start_engine("llama", prefix_cache_tokens=1024)
    prompt = [5 + i % 50 for i in range(80)]
    first = await run(engine, "a", prompt)
    again = await run(engine, "b", prompt)
    longer = await run(engine, "c", [*prompt[:70], 9, 9, 9])
    assert engine._stepper.prefix_cache.hits == 4
    assert token_ids(again) == token_ids(first)
    np.testing.assert_allclose(values(again), values(first), rtol=1e-5, atol=1e-5)
    want = plain_values(loaded("llama"), engine.monitors, [*prompt[:70], 9, 9, 9, *token_ids(longer)])
    np.testing.assert_allclose(values(longer), want, rtol=1e-5, atol=1e-4)
    await engine.stop()


async def test_a_steered_request_changes_no_other(start_engine):
    engine = await start_engine("gemma2")
    alone = await gather(engine)
    push = SteerCommand("push", 3.0)

    async def mixed(index, prompt):
        steer = {len([o for o in alone[index] if o.phase is Phase.PROMPT]) + 2: push} if index == 1 else None
        return await run(engine, f"m{index}", prompt, steer=steer)

    together = await asyncio.gather(*(mixed(i, prompt) for i, prompt in enumerate(PROMPTS)))
    for index in (0, 2, 3, 4):
        assert token_ids(together[index]) == token_ids(alone[index])
        np.testing.assert_allclose(values(together[index]), values(alone[index]), rtol=1e-5, atol=1e-4)
    assert token_ids(together[1]) != token_ids(alone[1])
    await engine.stop()


async def test_steering_set_on_the_prompt_is_in_force_for_the_first_token(loaded, start_engine):
    """Equal to a plain pass in which the hook adds the vector at the prompt's last token and every token after."""
    engine = await start_engine("llama")
    prompt = PROMPTS[1]
    num_chunks = -(-len(prompt) // 7)
    outputs = await run(engine, "s", prompt, steer={num_chunks - 1: SteerCommand("push", 3.0)})
    ids = token_ids(outputs)
    model = loaded("llama")
    vector = engine._runtime._vectors["push"].directions[0].vector

    def add(_module, _args, output):
        output[:, len(prompt) - 1 :] += 3.0 * vector
        return output

    handle = model.blocks.layers[1].register_forward_hook(add)
    try:
        assert ids == plain_greedy(model, prompt, 12)
    finally:
        handle.remove()
    assert ids != plain_greedy(model, prompt, 12)
    await engine.stop()


async def test_steering_ends_after_its_tokens(start_engine):
    engine = await start_engine("llama")
    prompt = PROMPTS[0]
    outputs = await run(engine, "s", prompt, steer={0: SteerCommand("push", 3.0, for_tokens=4)})
    steered, plain = token_ids(outputs), token_ids(await run(engine, "p", prompt))
    assert len(steered) == 12
    assert steered != plain
    await engine.stop()


async def test_closing_the_stream_early_frees_everything(start_engine):
    engine = await start_engine("llama")
    async with aclosing(engine.generate(EngineRequest("r", PROMPTS[1], GREEDY))) as steps:
        async for _ in steps:
            break
    await everything_is_free(engine)
    await engine.stop()


async def test_a_slow_consumer_holds_up_only_its_own_request(start_engine):
    engine = await start_engine("llama")
    alone = token_ids(await run(engine, "a", PROMPTS[2]))
    stream = engine.generate(EngineRequest("slow", PROMPTS[2], GREEDY))
    slow = [await anext(stream) for _ in range(5)]
    others = await gather(engine, PROMPTS[:3])  # all of them finish while "slow" is not asked for
    assert all(outputs[-1].finish for outputs in others)
    slow += [output async for output in stream]
    assert token_ids(slow) == alone
    await engine.stop()


@pytest.mark.parametrize("seed", [0, 1])
async def test_a_seed_gives_the_same_text_whatever_the_neighbours(start_engine, seed):
    engine = await start_engine("llama")
    sampling = SamplingParams(max_tokens=12, temperature=1.3, top_p=0.9, top_k=30, seed=seed, ignore_eos=True)
    alone = token_ids(await run(engine, "a", PROMPTS[2], sampling))
    _, together = await asyncio.gather(gather(engine), run(engine, "b", PROMPTS[2], sampling))
    assert token_ids(together) == alone
    await engine.stop()


async def test_logprobs_are_those_of_a_plain_pass(loaded, start_engine):
    engine = await start_engine("qwen3")
    sampling = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True, logprobs=3, prompt_logprobs=2)
    prompt = PROMPTS[2]
    outputs = await run(engine, "r", prompt, sampling)
    tokens = [token for output in outputs for token in output.tokens]
    ids = [*prompt, *(token.token_id for token in tokens)]
    with torch.inference_mode():
        logits = loaded("qwen3").model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    want = torch.log_softmax(logits.float(), -1)
    for index, token in enumerate(tokens):
        row = want[len(prompt) + index - 1]
        assert token.logprob.logprob == pytest.approx(float(row[token.token_id]), abs=1e-4)
        assert [top.token_id for top in token.top_logprobs] == row.topk(3).indices.tolist()
    judged = next(output.prompt_logprobs for output in outputs if output.final)
    assert judged[0] is None
    assert [own.logprob for own, _ in judged[1:]] == pytest.approx(
        [float(want[i, prompt[i + 1]]) for i in range(len(prompt) - 1)], abs=1e-4
    )
    await engine.stop()


async def test_a_stop_string_cuts_the_text_and_ends_the_request(start_engine):
    engine = await start_engine("llama")
    whole = text(await run(engine, "a", PROMPTS[2]))
    stop = whole[4:6]
    cut = await run(
        engine, "b", PROMPTS[2], SamplingParams(max_tokens=12, temperature=0, ignore_eos=True, stop=(stop,))
    )
    assert text(cut) == whole[: whole.index(stop)]
    assert cut[-1].finish is FinishReason.STOP
    await engine.stop()


@pytest.mark.parametrize(
    ("prompt", "sampling", "word"),
    [
        ([], GREEDY, "empty"),
        ([999], GREEDY, "vocabulary"),
        ([-1], GREEDY, "vocabulary"),
        ([1] * 128, GREEDY, "room"),
    ],
)
async def test_a_request_that_cannot_run_is_refused_and_the_next_one_works(
    start_engine, prompt, sampling, word
):
    engine = await start_engine("llama")
    with pytest.raises(RequestRefused, match=word):
        await run(engine, "bad", prompt, sampling)
    assert len(token_ids(await run(engine, "good", PROMPTS[0]))) == 12
    await engine.stop()


async def test_monitors_are_exchanged_under_traffic_and_running_requests_keep_theirs(loaded, start_engine):
    """Each request's values are those of the monitors that it began with; when it ends, they go."""
    engine = await start_engine("llama", prefix_cache_tokens=1024)
    old = engine.monitors
    stream = engine.generate(EngineRequest("early", PROMPTS[1], GREEDY))
    early = [await anext(stream) for _ in range(2)]  # in the middle of its prompt
    fresh = monitors_for(loaded("llama"))
    new = MonitorSet(fresh.monitors[2:], {"erase": fresh.vectors["erase"]})
    await engine.install(new)
    late, _ = await asyncio.gather(run(engine, "late", PROMPTS[1]), anext(stream))
    assert engine.monitors == new.monitors
    early += [output async for output in stream]
    ids = token_ids(late)
    assert token_ids(early) == ids
    want = plain_values(loaded("llama"), fresh.monitors, [*PROMPTS[1], *ids])

    def read(outputs, monitors):
        picker = Picker(monitors)
        return np.concatenate([picker.pick(o.values, o.monitors) for o in outputs if o.num_scored])

    np.testing.assert_allclose(read(late, new.monitors), want[:, 2:], rtol=1e-5, atol=1e-4)
    got = read(early, old)
    np.testing.assert_allclose(got[: 2 * 7], want[: 2 * 7], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(got[-5:], want[-5:], rtol=1e-5, atol=1e-4)
    await everything_is_free(engine)
    after = await run(engine, "after", PROMPTS[0])
    assert after[-1].monitors == new.monitors
    with pytest.raises(KeyError):
        engine.steer("after", SteerCommand("push", 1.0))
    await engine.stop()
