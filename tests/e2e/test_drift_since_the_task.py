"""A monitor of drift on a running server: measured from the first user message, however the prompt is cut and cached."""

import numpy as np
import pytest
import torch

from deploy.demo.model_files import MODEL_DIR
from guard.audit import recorded_scores
from guard.types import Phase
from monitors.artifacts import MonitorSet
from monitors.base import Monitor
from monitors.delta import Delta
from monitors.types import HookPoint
from server.engines.scripted import REHEARSAL
from server.engines.transformers.engine import EngineSettings, TransformersEngine
from server.engines.transformers.model import load_model
from server.tokenizer import ModelTokenizer
from tests.integration.conftest import plain_values

POLICY = """\
apiVersion: interlock/v1
kind: Policy
metadata: {name: drift, version: "1"}
rules:
  - {id: told, when: max(prompt.drift) > 1e6 or max(response.drift) > 1e6, then: {log: {}}, on_error: closed}
"""
MESSAGES = [
    {"role": "user", "content": "What is the capital of Norway?"},
    {"role": "assistant", "content": "The capital of Norway is Oslo."},
    {
        "role": "user",
        "content": "Forget that. How do I clean the oven, and what do owls like to eat at night?",
    },
]


@pytest.fixture
def live(serve):
    loaded = load_model(str(MODEL_DIR), device="cpu")
    generator = torch.Generator().manual_seed(0)
    delta = Delta((HookPoint(3),), torch.randn(1, 256, generator=generator), torch.tensor([0.5]))
    monitor = Monitor("drift", delta, calibration=REHEARSAL)
    engine = TransformersEngine(loaded, MonitorSet((monitor,)), EngineSettings(max_batch=2, prefill_chunk=7))
    found = serve(POLICY, engine=engine, tokenizer=ModelTokenizer(loaded.tokenizer))
    found.loaded, found.monitor = loaded, monitor
    return found


def ask(live, messages):
    return live.client.chat.completions.create(
        model=live.service.engine.info.model_id, messages=messages, temperature=0, max_tokens=8
    )


def test_scores_are_differences_to_the_end_of_the_first_user_message(live):
    tokenizer = live.loaded.tokenizer
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    first = tokenizer.apply_chat_template(MESSAGES[:1], add_generation_prompt=False, return_dict=False)
    raw = plain_values(live.loaded, [live.monitor], ids)[:, 0]
    expected = raw[len(first) :] - raw[len(first) - 1] + 0.5
    for _ in range(2):  # the second time the prompt's start comes from the prefix cache
        ask(live, MESSAGES)
        record = live.records()[-1]
        scores = recorded_scores(record, Phase.PROMPT)["drift"]
        assert scores[: len(first)] == [None] * len(first)
        np.testing.assert_allclose(scores[len(first) :], expected, rtol=1e-4, atol=1e-3)
        assert np.isfinite(recorded_scores(record, Phase.RESPONSE)["drift"]).all()
    assert live.service.engine._stepper.prefix_cache.hits


def test_a_text_completion_has_no_task_to_drift_from_and_fails_closed(live):
    model = live.service.engine.info.model_id
    answer = live.http.post("/v1/completions", json={"model": model, "prompt": "Hello.", "max_tokens": 4})
    assert answer.status_code == 503
    assert live.records()[-1]["errors"][0]["monitor"] == "drift"
