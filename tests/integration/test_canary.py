"""Canaries run through the serving engine: they pass on the model they were made with, and tell any other."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from monitors.artifacts.canary import Canary, CanarySequence
from monitors.tracker import TrackerPlan
from server.canary import CanaryWatch
from server.engines.scripted import Script, ScriptedEngine
from tests.integration.conftest import monitors_for, plain_values

pytestmark = pytest.mark.anyio
SEQUENCES = ([5, 9, 33, 12, 8], [7] * 20, [3])


def canaries(loaded, names, shift=0.0):
    monitors = [m for m in monitors_for(loaded).monitors if m.name in names]

    def maximum(monitor, ids):
        tracker = TrackerPlan([monitor]).prompt()
        tracker.push(plain_values(loaded, [monitor], ids))
        return float(tracker.maxima()[0]) + shift

    return tuple(
        Canary(
            monitor=monitor.name,
            weights_sha256="0" * 64,
            sequences=tuple(
                CanarySequence(ids=tuple(ids), maximum=maximum(monitor, ids)) for ids in SEQUENCES
            ),
        )
        for monitor in monitors
    )


async def test_the_engine_that_monitors_were_made_for_passes(loaded, start_engine):
    engine = await start_engine("llama")
    checked = {}
    watch = CanaryWatch(engine, on_checked=checked.__setitem__)
    monitors = replace(engine._installed.current, canaries=canaries(loaded("llama"), {"layer1", "across"}))
    watch.expect(monitors)
    assert watch.refuses
    assert await watch.check(monitors) == ()
    assert not watch.refuses
    assert checked == {"layer1": True, "across": True}
    for _ in range(5):
        await asyncio.sleep(0)  # a row is freed between steps
    assert engine.load().running == engine.load().kv_tokens == 0


async def test_a_score_that_is_off_is_told_and_requests_are_refused(loaded, start_engine):
    engine = await start_engine("llama")
    wrong = canaries(loaded("llama"), {"across"}, shift=0.05) + canaries(loaded("llama"), {"layer0"})
    monitors = replace(engine._installed.current, canaries=wrong)
    closed, opened = CanaryWatch(engine), CanaryWatch(engine, on_failure="open")
    assert await closed.check(monitors) == ("across",)
    assert closed.refuses
    assert await opened.check(monitors) == ("across",)
    assert not opened.refuses


async def test_a_missing_score_is_a_failure(loaded):
    engine = ScriptedEngine(lambda _: Script(prompt_scores={"harm": [0.5]}), ["harm"])
    canary = Canary(
        monitor="harm",
        weights_sha256="0" * 64,
        sequences=(CanarySequence(ids=(1, 2, 3), maximum=0.5),),
    )
    from monitors.artifacts import MonitorSet  # noqa: PLC0415

    monitors = MonitorSet(engine.monitors, canaries=(canary,))
    assert await CanaryWatch(engine).check(monitors) == ("harm",)


async def test_sampled_norms_are_those_of_the_residual_stream(loaded, start_engine):
    engine = await start_engine("llama")
    watch = CanaryWatch(engine)
    await watch.check(replace(engine._installed.current, canaries=canaries(loaded("llama"), {"layer1"})))
    found = engine.row_norms()
    assert {str(point) for point in found} >= {"blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"}
    assert all(summary.num_rows > 0 and np.isfinite(summary.mean) for summary in found.values())
