"""Canaries: fixed token sequences whose scores are known. They go through the serving engine like any request.

What they catch is silent: another layer, other weights, a lower precision, a broken kernel. Until they have passed, and
while they fail, requests are refused (unless the server is told to stay open, which is counted).
"""

import asyncio
import math
import secrets
from collections.abc import Callable, Sequence
from typing import Literal

import structlog

from monitors.artifacts import MonitorSet
from monitors.artifacts.canary import CANARY_REFERENCE, Canary, CanarySequence
from monitors.base import Monitor
from monitors.layout import Picker
from monitors.tracker import TrackerPlan
from server.engines.base import Engine, EngineError, EngineRequest, SamplingParams

_log = structlog.get_logger()
OnFailure = Literal["closed", "open"]
_HALF_PRECISION = 30.0  # scores of half-precision weights may be off by this many times the tolerance


class CanaryWatch:
    """The state of the monitors' canaries on one engine."""

    def __init__(
        self,
        engine: Engine,
        *,
        on_failure: OnFailure = "closed",
        on_checked: Callable[[str, bool], None] = lambda *_: None,
    ) -> None:
        self._engine = engine
        self._on_failure = on_failure
        self._on_checked = on_checked
        self._lock = asyncio.Lock()
        self.is_pending = False  # monitors that were not checked yet are in force
        self.failed: tuple[str, ...] = ()  # names of monitors

    @property
    def refuses(self) -> bool:
        """Whether requests must be refused."""
        return self._on_failure == "closed" and (self.is_pending or bool(self.failed))

    def expect(self, monitors: MonitorSet) -> None:
        """These monitors are in force now: what they have of canaries must pass first."""
        self.is_pending = bool(monitors.canaries)
        self.failed = ()

    async def check(self, monitors: MonitorSet) -> tuple[str, ...]:
        """Run all canaries; the names of the monitors that failed. An engine that is busy is tried again next time."""
        async with self._lock:
            try:
                failed = [
                    canary.monitor for canary in monitors.canaries if not await self._passes(canary, monitors)
                ]
            except EngineError as error:
                _log.warning("canaries not checked", error=type(error).__name__)
                return self.failed
            self.failed, self.is_pending = tuple(failed), False
            return self.failed

    async def watch(self, monitors: Callable[[], MonitorSet], interval_s: float) -> None:
        """Check now, and then every `interval_s`; sooner while something is unchecked."""
        while True:
            await self.check(monitors())
            await asyncio.sleep(1.0 if self.is_pending else interval_s)

    async def _passes(self, canary: Canary, monitors: MonitorSet) -> bool:
        monitor = next(m for m in monitors.monitors if m.name == canary.monitor)
        worst = max([await self._error(sequence, monitor) for sequence in canary.sequences])
        limit = canary.tolerance * (1.0 if self._engine.info.dtype == "float32" else _HALF_PRECISION)
        passed = worst <= limit
        self._on_checked(canary.monitor, passed)
        if not passed:
            _log.error(
                "a canary failed: this engine does not give the scores that the monitor was calibrated with",
                monitor=canary.monitor,
                worst_error=worst,
                limit=limit,
            )
        return passed

    async def _error(self, sequence: CanarySequence, monitor: Monitor) -> float:
        """How far the score is off, relative to 1 + |score|; infinite where there is none."""
        found = await self._maximum(sequence.ids, monitor)
        error = abs(found - sequence.maximum) / (1.0 + abs(sequence.maximum))
        return error if math.isfinite(error) else math.inf

    async def _maximum(self, ids: Sequence[int], monitor: Monitor) -> float:
        request = EngineRequest(
            f"canary-{secrets.token_hex(8)}", ids, SamplingParams(max_tokens=1, temperature=0.0)
        )
        tracker, picker = TrackerPlan([monitor]).prompt(CANARY_REFERENCE), Picker([monitor])
        steps = self._engine.generate(request)
        try:
            async for step in steps:
                if step.values is None:
                    return math.nan
                tracker.push(picker.pick(step.values, step.monitors))
                if step.final:
                    break
        finally:
            await steps.aclose()
        return float(tracker.maxima()[0])
