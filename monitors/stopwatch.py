"""How long monitors hold up a forward pass: the host's time on a CPU, the device's own on a GPU."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import torch

Stage = Literal["capture", "steer"]
STAGES: Final[tuple[Stage, ...]] = ("capture", "steer")


@dataclass(frozen=True, slots=True)
class PassTimes:
    """Of one forward pass, in seconds."""

    capture: float  # reading at hook points, the monitors' products included
    steer: float


Mark = float | torch.cuda.Event


class Stopwatch:
    """Adds up what a pass spends in each stage. `told` hears of each pass; on a GPU of the one before, whose events are over by then."""

    def __init__(self, device: torch.device, told: Callable[[PassTimes], None]) -> None:
        self._on_gpu = device.type == "cuda"
        self._told = told
        self._seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
        self._events: list[tuple[Stage, torch.cuda.Event, torch.cuda.Event]] = []

    def start(self) -> Mark:
        if not self._on_gpu:
            return time.perf_counter()
        return _recorded()

    def stop(self, stage: Stage, since: Mark) -> None:
        if isinstance(since, float):
            self._seconds[stage] += time.perf_counter() - since
        else:
            self._events.append((stage, since, _recorded()))

    def begin(self) -> None:
        """A pass begins: what was counted of one that failed is forgotten, on a GPU what the last one took is told."""
        if self._on_gpu and self._events and self._events[-1][2].query():  # type: ignore[no-untyped-call]
            for stage, since, until in self._events:
                self._seconds[stage] += since.elapsed_time(until) / 1000
            self._tell()
        self._events.clear()
        self._seconds = dict.fromkeys(STAGES, 0.0)

    def end(self) -> None:
        """A pass is over."""
        if not self._on_gpu:
            self._tell()

    def _tell(self) -> None:
        self._told(PassTimes(self._seconds["capture"], self._seconds["steer"]))


def _recorded() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
