"""From raw values to scores: one phase of one request, all monitors at once."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monitors.aggregate import Aggregator, AggregatorSpec, Array
from monitors.base import Link, Monitor

OUT_OF_SCOPE = -np.inf
"""The score of a token that its monitor does not read. Never NaN, which is a failure."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Monitors that are aggregated alike."""

    aggregator: AggregatorSpec
    link: Link
    exclude_first: int


@dataclass(frozen=True, slots=True)
class TrackerState:
    """A snapshot. Opaque; belongs to trackers of the same plan."""

    num_tokens: int
    aggregators: tuple[Aggregator, ...]
    failed: NDArray[np.bool_]
    maxima: Array


class TrackerPlan:
    """How the monitors of a bank are tracked. Made once per bank; makes the trackers of each request."""

    def __init__(self, monitors: Sequence[Monitor]) -> None:
        members: dict[_Group, list[int]] = {}
        for column, monitor in enumerate(monitors):
            group = _Group(monitor.aggregator, monitor.link, monitor.exclude_first)
            members.setdefault(group, []).append(column)
        self.num_monitors = len(monitors)
        self.first_in_scope = np.array([monitor.exclude_first for monitor in monitors], dtype=np.int64)
        self.groups = tuple(members)
        self.columns = tuple(_as_slice(columns) for columns in members.values())
        self.sizes = tuple(len(columns) for columns in members.values())

    def prompt(self) -> "Tracker":
        """A tracker of prompt tokens: monitors skip their `exclude_first` tokens."""
        return Tracker(self, self.first_in_scope)

    def response(self) -> "Tracker":
        """A tracker of response tokens: all are in scope."""
        return Tracker(self, np.zeros_like(self.first_in_scope))


class Tracker:
    """Running scores of one phase of one request."""

    def __init__(self, plan: TrackerPlan, first_in_scope: NDArray[np.int64]) -> None:
        self._plan = plan
        self.first_in_scope = first_in_scope  # [num_monitors], index of the first token with a score
        self._first = tuple(int(first_in_scope[columns].max()) for columns in plan.columns)  # by group
        self._num_tokens = 0
        self._aggregators = [
            g.aggregator.start(size) for g, size in zip(plan.groups, plan.sizes, strict=True)
        ]
        self._failed = np.zeros(plan.num_monitors, dtype=np.bool_)
        self._maxima = np.full(plan.num_monitors, -np.inf)

    def push(self, values: NDArray[np.floating]) -> Array:
        """The running score after each of the next tokens. values: [n, num_monitors] raw -> [n, num_monitors].

        A value that is not finite makes its monitor's score NaN from there to the end of the phase.
        A token before `first_in_scope` has the score OUT_OF_SCOPE.
        """
        if values.shape[1:] != (self._plan.num_monitors,):
            raise ValueError(f"values have shape {values.shape}; needs [n, {self._plan.num_monitors}]")
        scores = values.astype(np.float64)
        if not len(scores):
            return scores
        failed = self._failures(scores)
        plan = self._plan
        for group, columns, first, state in zip(
            plan.groups, plan.columns, self._first, self._aggregators, strict=True
        ):
            skipped = max(0, first - self._num_tokens)
            z = scores[skipped:, columns]  # a view if the columns are a slice, else a copy
            if len(z):
                state.update(z)
                if group.link is Link.SIGMOID:
                    _sigmoid(z)
                scores[skipped:, columns] = z
            scores[:skipped, columns] = OUT_OF_SCOPE
        if failed is not None:
            scores[failed] = np.nan
        np.maximum(self._maxima, scores[0] if len(scores) == 1 else scores.max(axis=0), out=self._maxima)
        self._num_tokens += len(scores)
        return scores

    def maxima(self) -> Array:
        """The largest score so far: [num_monitors]. -inf: no token was in scope yet; NaN: the monitor failed."""
        return self._maxima.copy()

    def snapshot(self) -> TrackerState:
        """The state after the tokens so far, for a prefix cache or for another choice of the same prompt."""
        state = TrackerState(self._num_tokens, tuple(self._aggregators), self._failed, self._maxima)
        return deepcopy(state)

    def restore(self, state: TrackerState) -> None:
        """Go on as if exactly the snapshot's tokens had been pushed."""
        state = deepcopy(state)
        self._num_tokens = state.num_tokens
        self._aggregators = list(state.aggregators)
        self._failed = state.failed
        self._maxima = state.maxima

    def copy(self) -> "Tracker":
        """An independent tracker in the same state."""
        other = Tracker(self._plan, self.first_in_scope)
        other.restore(self.snapshot())
        return other

    def _failures(self, scores: Array) -> NDArray[np.bool_] | None:
        """Which scores must be NaN: [n, num_monitors], or None. Zeroes the bad values, so that state stays finite."""
        finite = np.isfinite(scores)
        if finite.all() and not self._failed.any():
            return None
        bad = ~finite
        scores[bad] = 0.0
        tokens = np.arange(self._num_tokens, self._num_tokens + len(scores))
        bad &= tokens[:, None] >= self.first_in_scope
        bad[0] |= self._failed
        failed = np.logical_or.accumulate(bad, axis=0)
        self._failed = failed[-1].copy()
        return failed


def _as_slice(columns: list[int]) -> slice | NDArray[np.intp]:
    """Adjacent columns as a slice, which numpy reads without a copy."""
    if columns[-1] - columns[0] + 1 == len(columns):
        return slice(columns[0], columns[-1] + 1)
    return np.array(columns, dtype=np.intp)


def _sigmoid(z: Array) -> None:
    """In place; exact to the last digit at both ends, and no overflow."""
    np.negative(z, out=z)
    np.logaddexp(0.0, z, out=z)
    np.negative(z, out=z)
    np.exp(z, out=z)
