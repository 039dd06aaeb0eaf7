"""The in-process engine on a CUDA device. Run with `make test-gpu`; skipped elsewhere."""

import asyncio
from contextlib import aclosing

import numpy as np
import pytest
import torch

from monitors.artifacts import MonitorSet
from server.engines.base import EngineRequest, SamplingParams
from server.engines.transformers.engine import EngineSettings, TransformersEngine
from server.engines.transformers.model import prepare
from tests.integration.conftest import monitors_for, plain_values
from tests.tiny_models import TINY
from tests.tiny_tokenizer import tiny_tokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.anyio,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PROMPTS = [[1, 9, 30, 41], list(range(6, 46)), [1, 20, 33, 8, 8]]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.parametrize("name", TINY)
async def test_scores_on_the_device_equal_a_plain_forward_pass(name):
    loaded = prepare(TINY[name]().to("cuda"), tiny_tokenizer(), model_id=name)
    engine = TransformersEngine(loaded, monitors_for(loaded), EngineSettings(max_batch=4, prefill_chunk=7))
    await engine.start()

    async def run(index):
        sampling = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
        async with aclosing(engine.generate(EngineRequest(str(index), PROMPTS[index], sampling))) as steps:
            return [step async for step in steps]

    for prompt, outputs in zip(PROMPTS, await asyncio.gather(*map(run, range(len(PROMPTS)))), strict=True):
        ids = [token.token_id for output in outputs for token in output.tokens]
        got = np.concatenate([output.values for output in outputs if output.num_scored])
        want = plain_values(loaded, engine.monitors, [*prompt, *ids])
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())
    await engine.stop()


async def test_bfloat16_serves():
    loaded = prepare(TINY["llama"]().to("cuda", torch.bfloat16), tiny_tokenizer(), model_id="llama")
    engine = TransformersEngine(loaded, MonitorSet(), EngineSettings(max_batch=4))
    await engine.start()
    request = EngineRequest("r", PROMPTS[1], SamplingParams(max_tokens=12, seed=1, ignore_eos=True))
    async with aclosing(engine.generate(request)) as steps:
        outputs = [output async for output in steps]
    tokens = [token for output in outputs for token in output.tokens]
    assert len(tokens) == 12
    await engine.stop()
