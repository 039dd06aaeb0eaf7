"""From raw values to scores: one phase of one request, all monitors at once."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monitors.aggregate import Aggregator, AggregatorSpec, Array
from monitors.base import Link, Monitor
from monitors.layout import value_slices

OUT_OF_SCOPE = -np.inf
"""The score of a token that its monitor does not read. Never NaN, which is a failure."""


Columns = slice | NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class _Alike:
    """What monitors of one value have in common that are aggregated together."""

    aggregator: AggregatorSpec
    link: Link
    exclude_first: int
    relative_bias: float | None  # see Transform.relative_bias


@dataclass(frozen=True, slots=True)
class _Group:
    """Monitors that are aggregated together: those of one value that are alike, or a single one of several values."""

    alike: _Alike
    num_values: int
    values: Columns  # among the raw values
    monitors: Columns  # among the scores
    readout: Callable[[Tensor], Tensor] | None  # None: the aggregates are the scores


@dataclass(frozen=True, slots=True)
class TrackerState:
    """A snapshot. Opaque; belongs to trackers of the same plan."""

    num_tokens: int
    aggregators: tuple[Aggregator, ...]
    failed: NDArray[np.bool_]
    maxima: Array
    origin: Array | None


class TrackerPlan:
    """How the monitors of a bank are tracked. Made once per bank; makes the trackers of each request."""

    def __init__(self, monitors: Sequence[Monitor]) -> None:
        slices = value_slices(monitors)
        self.num_monitors = len(monitors)
        self.num_values = slices[-1].stop if slices else 0
        self.first_in_scope = np.array([monitor.exclude_first for monitor in monitors], dtype=np.int64)
        self.starts = np.array([s.start for s in slices], dtype=np.intp)
        self.groups = tuple(_groups(monitors, slices))
        self.relative_values = tuple(
            values
            for m, values in zip(monitors, slices, strict=True)
            if m.transform.relative_bias is not None
        )
        self.is_relative = np.array([m.transform.relative_bias is not None for m in monitors], dtype=np.bool_)

    def prompt(self, reference: int | None = None) -> "Tracker":
        """A tracker of prompt tokens: monitors skip their `exclude_first` tokens, relative ones all up to `reference`."""
        first = self.first_in_scope
        if reference is not None and self.relative_values:
            first = np.where(self.is_relative, np.maximum(first, reference + 1), first)
        return Tracker(self, first, reference)

    def response(self) -> "Tracker":
        """A tracker of response tokens: all are in scope. Relative monitors need `refer` first."""
        return Tracker(self, np.zeros_like(self.first_in_scope), None)


class Tracker:
    """Running scores of one phase of one request."""

    def __init__(self, plan: TrackerPlan, first_in_scope: NDArray[np.int64], reference: int | None) -> None:
        self._plan = plan
        self._reference = reference
        self._origin: Array | None = None  # [num_values], the raw values of the reference token
        self.first_in_scope = first_in_scope  # [num_monitors], index of the first token with a score
        self._first = tuple(int(first_in_scope[group.monitors].max()) for group in plan.groups)
        self._num_tokens = 0
        self._aggregators = [group.alike.aggregator.start(group.num_values) for group in plan.groups]
        self._failed = np.zeros(plan.num_monitors, dtype=np.bool_)
        self._maxima = np.full(plan.num_monitors, -np.inf)

    def push(self, values: NDArray[np.floating]) -> Array:
        """The running score after each of the next tokens. values: [n, num_values] raw -> [n, num_monitors].

        A value that is not finite makes its monitor's score NaN from there to the end of the phase.
        A token before `first_in_scope` has the score OUT_OF_SCOPE.
        """
        plan = self._plan
        if values.shape[1:] != (plan.num_values,):
            raise ValueError(f"values have shape {values.shape}; needs [n, {plan.num_values}]")
        raw = values.astype(np.float64)
        scores = np.empty((len(raw), plan.num_monitors))
        if not len(raw):
            return scores
        if self._reference is not None and 0 <= self._reference - self._num_tokens < len(raw):
            self.refer(raw[self._reference - self._num_tokens])
        failed = self._failures(raw)
        for group, first, state in zip(plan.groups, self._first, self._aggregators, strict=True):
            skipped = max(0, first - self._num_tokens)
            z = raw[skipped:, group.values]  # a view if the columns are a slice, else a copy
            if len(z):
                if group.alike.relative_bias is not None and self._origin is not None:
                    z = z - self._origin[group.values] + group.alike.relative_bias
                z = state.update(z)
                if group.readout is not None:
                    z = group.readout(torch.from_numpy(z)).numpy()[:, None]
                if group.alike.link is Link.SIGMOID:
                    _sigmoid(z)
                scores[skipped:, group.monitors] = z
            scores[:skipped, group.monitors] = OUT_OF_SCOPE
        if failed is not None:
            scores[failed] = np.nan
        np.maximum(self._maxima, scores[0] if len(scores) == 1 else scores.max(axis=0), out=self._maxima)
        self._num_tokens += len(scores)
        return scores

    def refer(self, values: NDArray[np.floating]) -> None:
        """The raw values of the reference token, [num_values], where it is not among this phase's own."""
        self._origin = values.astype(np.float64)

    def maxima(self) -> Array:
        """The largest score so far: [num_monitors]. -inf: no token was in scope yet; NaN: the monitor failed."""
        return self._maxima.copy()

    def snapshot(self) -> TrackerState:
        """The state after the tokens so far, for a prefix cache or for another choice of the same prompt."""
        state = TrackerState(
            self._num_tokens, tuple(self._aggregators), self._failed, self._maxima, self._origin
        )
        return deepcopy(state)

    def restore(self, state: TrackerState) -> None:
        """Go on as if exactly the snapshot's tokens had been pushed."""
        state = deepcopy(state)
        self._num_tokens = state.num_tokens
        self._aggregators = list(state.aggregators)
        self._failed = state.failed
        self._maxima = state.maxima
        self._origin = state.origin

    def copy(self) -> "Tracker":
        """An independent tracker in the same state."""
        other = Tracker(self._plan, self.first_in_scope, self._reference)
        other.restore(self.snapshot())
        return other

    def _failures(self, raw: Array) -> NDArray[np.bool_] | None:
        """Which scores must be NaN: [n, num_monitors], or None. Zeroes the bad values, so that state stays finite.

        One bad value of a monitor is enough: the others alone might make a low score.
        """
        plan = self._plan
        finite = np.isfinite(raw)
        if plan.relative_values:
            self._need_origin(finite)
        if finite.all() and not self._failed.any():
            return None
        raw[~finite] = 0.0
        bad = ~finite
        if plan.num_values != plan.num_monitors:
            bad = np.logical_or.reduceat(bad, plan.starts, axis=1)
        tokens = np.arange(self._num_tokens, self._num_tokens + len(raw))
        bad &= tokens[:, None] >= self.first_in_scope
        bad[0] |= self._failed
        failed = np.logical_or.accumulate(bad, axis=0)
        self._failed = failed[-1].copy()
        return failed

    def _need_origin(self, finite: NDArray[np.bool_]) -> None:
        """Mark the values of relative monitors as bad where what they are relative to is unknown or not finite."""
        for values in self._plan.relative_values:
            if self._origin is None or not np.isfinite(self._origin[values]).all():
                finite[:, values] = False


def _groups(monitors: Sequence[Monitor], slices: Sequence[slice]) -> Iterator[_Group]:
    members: dict[_Alike, list[int]] = {}
    for place, (monitor, values) in enumerate(zip(monitors, slices, strict=True)):
        transform = monitor.transform
        alike = _Alike(monitor.aggregator, monitor.link, monitor.exclude_first, transform.relative_bias)
        if transform.num_values == 1:
            members.setdefault(alike, []).append(place)
        else:
            own = slice(place, place + 1)
            yield _Group(alike, values.stop - values.start, values, own, transform.readout)
    for alike, places in members.items():
        columns = [slices[place].start for place in places]
        yield _Group(alike, len(places), _as_slice(columns), _as_slice(places), None)


def _as_slice(columns: list[int]) -> Columns:
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
