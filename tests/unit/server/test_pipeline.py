"""The pipeline's own promises, with an engine that breaks its."""

from contextlib import aclosing
from datetime import UTC, datetime

import numpy as np
import pytest

from guard.policy import policy_from_text
from guard.types import Phase, Subject
from server.engines.base import EngineRequest, FinishReason, SamplingParams, StepOutput, Token
from server.engines.scripted import Script, ScriptedEngine
from server.pipeline import Choice, Closed, Delta, LeakPreventedError, Opened, guarded
from server.scoring import Scoring
from tests.e2e.conftest import ALLOW_ONLY

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Recorder:
    def __init__(self):
        self.calls = []

    def stepped(self, step):
        self.calls.append("stepped")

    def decided(self, decision, score_s, decide_s):
        self.calls.append("decided")

    def released(self, num_tokens):
        self.calls.append(f"released {num_tokens}")

    def steered(self, vector, for_tokens):
        self.calls.append(f"steered {vector}")

    def ended(self, closed, error):
        self.calls.append(("ended", closed, error))


def choice_for(engine, policy=ALLOW_ONLY):
    decider = policy_from_text(policy).decider(Subject(), now=datetime.now(UTC))
    scorer = Scoring(engine.monitors).scorer(decider.monitors)
    return Choice(0, EngineRequest("r", [1, 2], SamplingParams()), scorer, decider, Recorder())


class EagerEngine(ScriptedEngine):
    """Shows a token one step before it is scored: what must never get through."""

    async def generate(self, request):
        zero = np.zeros((1, 1), np.float32)
        yield StepOutput(Phase.PROMPT, 0, 1, zero, self.monitors, final=True)
        yield StepOutput(Phase.RESPONSE, 0, 1, zero, self.monitors, tokens=(Token(0, "a"), Token(1, "b")))
        yield StepOutput(Phase.RESPONSE, 1, 0, None, tokens=(), finish=FinishReason.STOP)


async def test_an_engine_that_shows_unscored_tokens_is_caught(monkeypatch):
    engine = EagerEngine(lambda _: Script(), ("harm",))
    choice = choice_for(engine)
    monkeypatch.setattr(
        type(choice.decider), "_release", lambda self: (__import__("guard.types").types.Emit(2),)
    )
    seen = []

    async def read():
        async with aclosing(guarded(engine, choice, lambda: 0.0)) as events:
            async for event in events:
                seen.append(event)  # noqa: PERF401  # what came before the error counts

    with pytest.raises(LeakPreventedError):
        await read()
    assert not any(isinstance(event, Delta) for event in seen)
    assert isinstance(choice.observer.calls[-1][2], LeakPreventedError)


async def test_events_come_in_order_and_the_observer_hears_of_the_end_once():
    engine = ScriptedEngine(lambda _: Script(["a", "b"], {"harm": [0, 0]}, {"harm": [0, 0]}), ("harm",))
    choice = choice_for(engine)
    events = [event async for event in guarded(engine, choice, lambda: 0.0)]
    assert [type(event) for event in events] == [Opened, Delta, Delta, Closed]
    assert [call[0] for call in choice.observer.calls if isinstance(call, tuple)] == ["ended"]


async def test_leaving_early_is_told_and_frees_the_engine():
    engine = ScriptedEngine(lambda _: Script(["a"] * 9, {"harm": [0, 0]}, {"harm": [0] * 9}), ("harm",))
    choice = choice_for(engine)
    async with aclosing(guarded(engine, choice, lambda: 0.0)) as events:
        await anext(events)
        await anext(events)
    assert choice.observer.calls[-1][1] is None
    assert engine.load().running == 0
