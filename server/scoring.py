"""From an engine's raw values to the scores a decider reads: one choice of one request."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from guard.types import Phase, Score, StepScores
from monitors.base import Monitor
from monitors.tracker import OUT_OF_SCOPE, Tracker, TrackerPlan
from server.engines.base import StepOutput

Scores = NDArray[np.float32]


class Scoring:
    """How the installed monitors are read. Made once per monitor set; makes one `Scorer` per choice."""

    def __init__(self, monitors: Sequence[Monitor]) -> None:
        self.names = tuple(monitor.name for monitor in monitors)
        self.plan = TrackerPlan(monitors)

    def scorer(self, needed: Collection[tuple[Phase, str]]) -> "Scorer":
        """A scorer that reports the series of the `needed` (phase, monitor) pairs."""
        index = {name: column for column, name in enumerate(self.names)}
        wanted = {
            phase: sorted(name for of, name in needed if of is phase and name in index) for phase in Phase
        }
        trackers = {Phase.PROMPT: self.plan.prompt(), Phase.RESPONSE: self.plan.response()}
        return Scorer(
            {
                phase: _PhaseScorer(
                    trackers[phase], names, np.array([index[name] for name in names], dtype=np.intp)
                )
                for phase, names in wanted.items()
            }
        )


class _PhaseScorer:
    """The running scores of the monitors that are needed in one phase."""

    def __init__(self, tracker: Tracker, names: list[str], columns: NDArray[np.intp]) -> None:
        self.names = names
        self._tracker = tracker
        self._columns = columns
        self._blocks: list[Scores] = []  # [n, len(names)] each

    def push(self, values: NDArray[np.float32]) -> dict[str, Sequence[Score]]:
        running = self._tracker.push(values)
        # float32 is what the decision log keeps, so decide on just that: a replay then sees the same numbers
        block = running[:, self._columns].astype(np.float32)
        self._blocks.append(block)
        return dict(zip(self.names, _as_scores(block), strict=True))

    def series(self) -> dict[str, list[Score]]:
        whole = np.concatenate(self._blocks) if self._blocks else np.empty((0, len(self.names)), np.float32)
        return dict(zip(self.names, _as_scores(whole), strict=True))

    def maxima(self) -> dict[str, float]:
        values = self._tracker.maxima()[self._columns].tolist()
        return {name: value for name, value in zip(self.names, values, strict=True) if value != OUT_OF_SCOPE}


class Scorer:
    """The running scores of one choice. Prompt and response are tracked apart: each phase starts afresh."""

    def __init__(self, phases: Mapping[Phase, _PhaseScorer]) -> None:
        self._phases = phases

    def score(self, step: StepOutput) -> StepScores:
        """The scores of one step's tokens. A monitor without a value is absent: the decider calls that a failure."""
        scores = {} if step.values is None else self._phases[step.phase].push(step.values)
        return StepScores(step.phase, step.start, step.num_scored, scores, step.final)

    def series(self) -> dict[Phase, dict[str, list[Score]]]:
        """Every score so far."""
        return {phase: scorer.series() for phase, scorer in self._phases.items()}

    def maxima(self, phase: Phase) -> dict[str, float]:
        """The highest score of each monitor that read a token of this phase (NaN where it failed)."""
        return self._phases[phase].maxima()


def _as_scores(block: Scores) -> list[list[Score]]:
    """One list per column; a token outside a monitor's scope has no score."""
    columns: list[list[Score]] = block.T.tolist()
    for column in columns:
        if column and column[0] == OUT_OF_SCOPE:  # only ever a prefix of the prompt
            column[:] = [None if value == OUT_OF_SCOPE else value for value in column]
    return columns
