"""From an engine's raw values to the scores a decider reads: one choice of one request."""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import structlog
from numpy.typing import NDArray

from guard.types import Phase, Score, StepScores
from monitors.base import Monitor
from monitors.layout import Picker
from monitors.tracker import OUT_OF_SCOPE, Tracker, TrackerPlan
from server.engines.base import StepOutput

_log = structlog.get_logger()

Needed = frozenset[tuple[Phase, str]]


class _PhasePlan:
    """The monitors that are tracked in one phase. Shared by all choices that need the same ones."""

    def __init__(self, phase: Phase, monitors: Sequence[Monitor]) -> None:
        self.names = tuple(monitor.name for monitor in monitors)
        plan = TrackerPlan(monitors)
        self._plan, self._phase = plan, phase
        self.picker = Picker(monitors)

    def start(self, reference: int | None) -> Tracker:
        """A request's tracker. reference: which prompt token monitors of drift measure from."""
        return self._plan.prompt(reference) if self._phase is Phase.PROMPT else self._plan.response()


class Scoring:
    """How a set of monitors is read. Makes one `Scorer` per choice, which tracks only what the rules need."""

    def __init__(self, monitors: Sequence[Monitor]) -> None:
        self._by_name = {monitor.name: monitor for monitor in monitors}
        self._plans: dict[
            Needed, Mapping[Phase, _PhasePlan]
        ] = {}  # few: one per combination of rules that apply

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    @property
    def needs_reference(self) -> bool:
        """Whether some monitor measures from the first user message."""
        return any(m.transform.relative_bias is not None for m in self._by_name.values())

    def scorer(self, needed: Needed, reference: int | None = None, *, shed: Collection[str] = ()) -> "Scorer":
        """A scorer of the `needed` series. A monitor that isn't installed gets no score, which is a failure of its rules.

        reference: the prompt token that monitors of drift measure from; without one they fail.
        shed: monitors that are not listened to for now; they fail, too.
        """
        if needed not in self._plans:
            self._plans[needed] = {phase: _PhasePlan(phase, self._needed(needed, phase)) for phase in Phase}
        phases = {phase: _PhaseScorer(plan, reference, shed) for phase, plan in self._plans[needed].items()}
        return Scorer(phases, reference)

    def _needed(self, needed: Needed, phase: Phase) -> list[Monitor]:
        names = sorted(name for of, name in needed if of is phase and name in self._by_name)
        return [self._by_name[name] for name in names]


class _PhaseScorer:
    """The running scores of one phase. A monitor that was lost is NaN from there to the end of the phase."""

    def __init__(self, plan: _PhasePlan, reference: int | None, shed: Collection[str]) -> None:
        self._plan = plan
        self._tracker = plan.start(reference)
        self._blocks: list[NDArray[np.float32]] = []  # [n, num_monitors] each
        self.lost = {name: "shed" for name in plan.names if name in shed}  # monitor -> why

    def refer(self, values: NDArray[np.float32], layout: tuple[Monitor, ...]) -> None:
        """The values of the reference token, [1, n]."""
        self._tracker.refer(self._plan.picker.pick(values, layout)[0])

    def push(self, values: NDArray[np.float32], layout: tuple[Monitor, ...]) -> None:
        try:
            running = self._tracker.push(self._plan.picker.pick(values, layout))
        except Exception as error:  # noqa: BLE001  # whatever a monitor raises, its rules' on_error says what follows
            _log.error("monitors could not be scored", error=type(error).__name__, monitors=self._plan.names)
            self._lose("error")
            running = np.full((len(values), len(self._plan.names)), np.nan)
        # float32 is what the decision log keeps, so decide on just that: a replay then sees the same numbers
        self._blocks.append(running.astype(np.float32))
        self._blank()

    def late(self) -> None:
        """The scores that were pushed last come too late: nothing that was not heard by then is heard any more."""
        self._lose("timeout")
        self._blank()

    def _lose(self, reason: str) -> None:
        self.lost = {name: self.lost.get(name, reason) for name in self._plan.names}

    def _blank(self) -> None:
        if self.lost and self._blocks:
            self._blocks[-1][:, [name in self.lost for name in self._plan.names]] = np.nan

    def newest(self) -> dict[str, Sequence[Score]]:
        """The scores that were pushed last."""
        return dict(zip(self._plan.names, _as_scores(self._blocks[-1]), strict=True))

    def series(self) -> dict[str, list[Score]]:
        names = self._plan.names
        whole = np.concatenate(self._blocks) if self._blocks else np.empty((0, len(names)), np.float32)
        return dict(zip(names, _as_scores(whole), strict=True))

    def maxima(self) -> dict[str, float]:
        values = self._tracker.maxima().tolist()
        read = {
            name: value for name, value in zip(self._plan.names, values, strict=True) if value != OUT_OF_SCOPE
        }
        return read | dict.fromkeys(self.lost, math.nan)


class Scorer:
    """The running scores of one choice. Prompt and response are tracked apart: each phase starts afresh."""

    def __init__(self, phases: Mapping[Phase, _PhaseScorer], reference: int | None = None) -> None:
        self._phases = phases
        self._reference = reference

    def score(self, step: StepOutput) -> StepScores:
        """The scores of one step's tokens. A monitor without a value is absent: the decider calls that a failure."""
        if step.values is not None:
            place = None if self._reference is None else self._reference - step.start
            if step.phase is Phase.PROMPT and place is not None and 0 <= place < len(step.values):
                self._phases[Phase.RESPONSE].refer(step.values[place : place + 1], step.monitors)
            self._phases[step.phase].push(step.values, step.monitors)
        return self._of(step)

    def late(self, step: StepOutput) -> StepScores:
        """The same step, whose scores came too late. From it on, all monitors have failed in this phase."""
        self._phases[step.phase].late()
        return self._of(step)

    def _of(self, step: StepOutput) -> StepScores:
        phase = self._phases[step.phase]
        scores = {} if step.values is None else phase.newest()
        return StepScores(step.phase, step.start, step.num_scored, scores, step.final, phase.lost)

    def series(self) -> dict[Phase, dict[str, list[Score]]]:
        """Every score so far."""
        return {phase: scorer.series() for phase, scorer in self._phases.items()}

    def maxima(self, phase: Phase) -> dict[str, float]:
        """The highest score of each monitor that read a token of this phase (NaN where it failed)."""
        return self._phases[phase].maxima()


def _as_scores(block: NDArray[np.float32]) -> list[list[Score]]:
    """One list per column; a token outside a monitor's scope has no score."""
    columns: list[list[Score]] = block.T.tolist()
    for column in columns:
        if column and column[0] == OUT_OF_SCOPE:  # only ever a prefix of the prompt
            column[:] = [None if value == OUT_OF_SCOPE else value for value in column]
    return columns
