"""From an engine's raw values to the scores a decider reads: one choice of one request."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from guard.types import Phase, Score, StepScores
from monitors.base import Monitor
from monitors.tracker import OUT_OF_SCOPE, Tracker, TrackerPlan
from server.engines.base import StepOutput


class Scoring:
    """How the installed monitors are read. Made once per monitor set; makes one `Scorer` per choice."""

    def __init__(self, monitors: Sequence[Monitor]) -> None:
        self.names = tuple(monitor.name for monitor in monitors)
        self.plan = TrackerPlan(monitors)
        self._index = {name: index for index, name in enumerate(self.names)}

    def scorer(self, needed: Collection[tuple[Phase, str]]) -> "Scorer":
        """A scorer that reports the series of the `needed` (phase, monitor) pairs; of the others it keeps the maximum only."""
        columns = {
            phase: [
                (name, self._index[name])
                for wanted, name in sorted(needed)
                if wanted == phase and name in self._index
            ]
            for phase in Phase
        }
        return Scorer(self, columns)


class Scorer:
    """The running scores of one choice. Prompt and response are tracked apart: each phase starts afresh."""

    def __init__(self, scoring: Scoring, columns: Mapping[Phase, list[tuple[str, int]]]) -> None:
        self._scoring = scoring
        self._columns = columns
        self._trackers: dict[Phase, Tracker] = {
            Phase.PROMPT: scoring.plan.prompt(),
            Phase.RESPONSE: scoring.plan.response(),
        }
        self.series: dict[Phase, dict[str, list[Score]]] = {
            phase: {name: [] for name, _ in columns[phase]} for phase in Phase
        }
        self.num_scored: dict[Phase, int] = dict.fromkeys(Phase, 0)

    def score(self, step: StepOutput) -> StepScores:
        """The scores of one step's tokens. A monitor without a value is absent: the decider calls that a failure."""
        scores: dict[str, Sequence[Score]] = {}
        if step.values is not None and step.num_scored:
            # float32 is what the decision log keeps, so decide on just that: a replay then sees the same numbers
            running = self._trackers[step.phase].push(step.values).astype(np.float32)
            for name, column in self._columns[step.phase]:
                own = _as_scores(running[:, column])
                scores[name] = own
                self.series[step.phase][name].extend(own)
            self.num_scored[step.phase] += step.num_scored
        return StepScores(step.phase, step.start, step.num_scored, scores, step.final)

    def maxima(self, phase: Phase) -> dict[str, float]:
        """The highest score of every monitor that read a token of this phase (NaN where it failed)."""
        values = self._trackers[phase].maxima()
        return {
            name: float(value)
            for name, value in zip(self._scoring.names, values, strict=True)
            if value != OUT_OF_SCOPE
        }


def _as_scores(column: NDArray[np.float32]) -> list[Score]:
    values: list[float] = column.tolist()
    if values and values[0] == OUT_OF_SCOPE:  # only ever a prefix of the prompt
        return [None if value == OUT_OF_SCOPE else value for value in values]
    return list(values)
