"""An engine that plays a script of tokens and scores. Product code: policy authors rehearse with it, tests drive it."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
from torch import Tensor

from guard.types import Phase
from monitors.artifacts import MonitorSet
from monitors.base import Calibration, Monitor, Threshold, Transform
from monitors.norms import NormSummary
from monitors.stopwatch import PassTimes
from monitors.types import HookPoint
from server.engines.base import (
    EngineError,
    EngineInfo,
    EngineLoad,
    EngineRequest,
    EngineStopped,
    FinishReason,
    Grammar,
    RequestRefused,
    SteerCommand,
    StepOutput,
    Token,
)
from server.engines.detokenize import SettledText

_POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class Script:
    """What one response plays. A score list that is too short plays NaN, as a broken monitor would."""

    tokens: Sequence[str] = ()
    prompt_scores: Mapping[str, Sequence[float]] = field(
        default_factory=dict
    )  # monitor -> one per prompt token
    response_scores: Mapping[str, Sequence[float]] = field(
        default_factory=dict
    )  # monitor -> one per response token
    finish: FinishReason = FinishReason.STOP
    fail_at: int | None = None  # raise EngineError instead of playing this token
    step_s: float = 0.0  # seconds per token
    hold: threading.Event | None = None  # no response token from `hold_from` on is played before it is set
    hold_from: int = 0


@dataclass(frozen=True, slots=True)
class _PlayedScore(Transform):
    """A monitor kind without weights: its value comes from the script."""

    kind: ClassVar[str] = "played"

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {}

    @property
    def params(self) -> Mapping[str, object]:
        return {}

    @classmethod
    def restore(
        cls, hook_points: Sequence[HookPoint], tensors: Mapping[str, Tensor], params: Mapping[str, object]
    ) -> Self:
        return cls()


REHEARSAL = Calibration(
    num_requests=3_000,
    confidence=0.95,
    thresholds=tuple(
        Threshold(phase, fpr, value, certified=True)
        for phase in ("prompt", "response", "conversation")
        for fpr, value in ((0.01, 0.5), (0.001, 0.9))
    ),
)
"""Of played monitors, so that a rehearsed rule may act. It says nothing about any real one."""


class ScriptedEngine:
    """Plays `script_for(request)`. The columns of its values are `monitor_names`, in that order."""

    def __init__(
        self,
        script_for: Callable[[EngineRequest], Script],
        monitor_names: Sequence[str],
        *,
        vectors: Sequence[str] = (),
        max_context: int = 100_000,
        calibration: Calibration | None = REHEARSAL,
    ) -> None:
        self.info = EngineInfo(
            "scripted", max_context, max_batch=1_000, dtype="none", device="none", fingerprint="scripted"
        )
        self.steered: list[tuple[str, SteerCommand]] = []  # what it was asked for, in order
        self._script_for = script_for
        self.monitors = tuple(
            Monitor(name, _PlayedScore(), calibration=calibration) for name in monitor_names
        )
        self._vectors = frozenset(vectors)
        self._aborted: set[str] = set()
        self._running: dict[str, int] = {}  # request id -> tokens held
        self._stopped = False

    @property
    def is_alive(self) -> bool:
        return not self._stopped

    async def start(self) -> None:
        self._stopped = False

    async def stop(self) -> None:
        self._stopped = True

    async def compile(self, source: str) -> Grammar:
        raise RequestRefused("not supported by this server: its engine plays a script")

    async def generate(self, request: EngineRequest) -> AsyncGenerator[StepOutput, None]:
        if not request.prompt_ids:
            raise RequestRefused("the prompt is empty")
        script = self._script_for(request)
        num_prompt = len(request.prompt_ids)
        limit = request.sampling.max_tokens
        text = SettledText(lambda index: script.tokens[index], request.sampling.stop)
        self._running[request.request_id] = num_prompt
        try:
            values = self._values(script.prompt_scores, 0, num_prompt)
            yield StepOutput(Phase.PROMPT, 0, num_prompt, values, self.monitors, final=True)
            for index in range(len(script.tokens)):
                if limit is not None and index >= limit:
                    yield self._end(index, text, FinishReason.LENGTH)
                    return
                while script.hold is not None and index >= script.hold_from and not script.hold.is_set():
                    await asyncio.sleep(_POLL_S)
                    self._check(request, script, -1)
                await asyncio.sleep(script.step_s)
                self._check(request, script, index)
                self._running[request.request_id] += 1
                settled = text.push(Token(index, ""))
                finish = FinishReason.STOP if text.stopped else None
                values = self._values(script.response_scores, index, 1)
                yield StepOutput(
                    Phase.RESPONSE, index, 1, values, self.monitors, tokens=tuple(settled), finish=finish
                )
                if finish:
                    return
            yield self._end(len(script.tokens), text, script.finish)
        finally:
            self._running.pop(request.request_id, None)
            self._aborted.discard(request.request_id)

    def steer(self, request_id: str, command: SteerCommand) -> None:
        if command.vector not in self._vectors:
            raise KeyError(command.vector)
        if request_id in self._running:
            self.steered.append((request_id, command))

    def abort(self, request_id: str) -> None:
        if request_id in self._running:
            self._aborted.add(request_id)

    async def install(self, monitors: MonitorSet) -> None:
        """A script's monitors are what it plays; only the vectors that it may be asked for can change."""
        self._vectors = frozenset(monitors.vectors)

    def watch_passes(self, told: Callable[[PassTimes], None]) -> None:
        """There are none."""

    def row_norms(self) -> Mapping[HookPoint, NormSummary]:
        return {}

    def load(self) -> EngineLoad:
        return EngineLoad(len(self._running), 0, sum(self._running.values()), 1_000_000, 0.0)

    def _check(self, request: EngineRequest, script: Script, index: int) -> None:
        if self._stopped:
            raise EngineStopped("the engine was stopped")
        if request.request_id in self._aborted:
            raise EngineError("aborted")
        if script.fail_at == index:
            raise EngineError("the script says that the engine fails here")

    def _values(
        self, scores: Mapping[str, Sequence[float]], start: int, count: int
    ) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        values = np.full((count, len(self.monitors)), np.nan, dtype=np.float32)
        for column, monitor in enumerate(self.monitors):
            own = list(scores.get(monitor.name, ()))[start : start + count]
            values[: len(own), column] = own
        return values

    @staticmethod
    def _end(index: int, text: SettledText, finish: FinishReason) -> StepOutput:
        return StepOutput(Phase.RESPONSE, index, 0, None, tokens=tuple(text.flush()), finish=finish)
