"""What an engine tells of its own progress: a step that hangs, one that never comes, and an end while a step hangs."""

import asyncio
import threading

import pytest

from server.engines.base import EngineRequest, EngineStopped
from tests.integration.test_transformers_engine import GREEDY, PROMPTS, everything_is_free, run

pytestmark = pytest.mark.anyio


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.005)


def age(engine):
    return engine.load().step_age_s


@pytest.fixture
async def hanging(start_engine, monkeypatch):
    """An engine whose steps wait for a gate, and one request that asks for one."""
    engine = await start_engine("llama")
    gate, entered = threading.Event(), threading.Event()
    step = engine._stepper.step

    def gated(ready):
        entered.set()
        gate.wait(60)
        return step(ready)

    monkeypatch.setattr(engine._stepper, "step", gated)
    request = asyncio.create_task(run(engine, "a", PROMPTS[2]))
    await until(entered.is_set)
    try:
        yield engine, gate, request
    finally:
        gate.set()
        await engine.stop()
        await asyncio.gather(request, return_exceptions=True)


async def grows(engine):
    seen = age(engine)
    await until(lambda: age(engine) > seen > 0)


async def test_a_step_that_hangs_has_an_age_also_when_nobody_waits_for_it_any_more(hanging):
    engine, gate, request = hanging
    await grows(engine)
    request.cancel()
    await asyncio.wait([request])
    await grows(engine)
    gate.set()
    await everything_is_free(engine)
    assert age(engine) == 0


async def test_a_step_that_never_comes_has_an_age_though_none_runs(start_engine, monkeypatch):
    engine = await start_engine("llama")
    assert age(engine) == 0
    monkeypatch.setattr(engine, "_admit_waiting", lambda: None)  # as if a wake-up was lost
    request = asyncio.create_task(run(engine, "a", PROMPTS[2]))
    await until(lambda: engine.load().waiting)
    await grows(engine)
    assert engine._step_started is None
    monkeypatch.undo()
    engine._wake.set()
    await asyncio.wait_for(request, 30)
    assert age(engine) == 0
    await engine.stop()


async def test_a_reader_that_pauses_is_not_taken_for_an_engine_that_hangs(start_engine):
    engine = await start_engine("llama")
    stream = engine.generate(EngineRequest("paused", PROMPTS[2], GREEDY))
    await anext(stream)
    await until(lambda: engine._step_started is None)
    assert (engine.load().running, age(engine)) == (1, 0)
    await stream.aclose()
    await engine.stop()


async def test_an_engine_that_is_stopped_tells_its_consumers_before_its_last_step_ends(hanging):
    engine, gate, request = hanging
    stopping = asyncio.create_task(engine.stop())
    with pytest.raises(EngineStopped):
        await asyncio.wait_for(request, 30)
    assert not gate.is_set()
    assert not stopping.done()
    gate.set()
    await asyncio.wait_for(stopping, 30)
    assert not engine.is_alive
