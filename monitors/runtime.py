"""Monitors at work on a model: hooks read and steer, one forward pass at a time.

    runtime.begin(spans)          which rows belong to whom, and how each is steered
    model(...)                    at each hook point the bank reads, then edits are applied
    values = runtime.end()        [n_rows, bank.num_columns]

Hooks that fire outside begin and end do nothing. A hook that does not fire leaves NaN, as does one whose monitors raise.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from monitors.bank import Bank
from monitors.hook_points import Blocks, HookPointError
from monitors.hooks import attach
from monitors.norms import NormMeter, NormSummary
from monitors.steering import Direction, Edit, SteeringVector, steer
from monitors.stopwatch import PassTimes, Stopwatch
from monitors.types import HookPoint


@dataclass(frozen=True, slots=True)
class RowSpan:
    """Consecutive rows of one request in a forward pass, and its edits: at most one per vector."""

    num_rows: int
    edits: tuple[Edit, ...] = ()


@dataclass(frozen=True, slots=True)
class _Steered:
    """One direction of a vector, and the rows that it is applied to."""

    vector: SteeringVector
    direction: Direction
    rows: Tensor  # [m] int64
    strength: Tensor  # [m, 1] float32


@dataclass(frozen=True, slots=True)
class _Pass:
    """One forward pass."""

    num_rows: int
    buffer: Tensor
    steered: Mapping[HookPoint, Sequence[_Steered]]
    seen: set[HookPoint] = field(default_factory=set)


class Runtime:
    """Owns the hooks on a model. One forward pass at a time, from one thread."""

    def __init__(
        self,
        blocks: Blocks,
        bank: Bank,
        vectors: Mapping[str, SteeringVector],
        *,
        on_failed_read: Callable[[HookPoint, Exception], None] = lambda *_: None,
    ) -> None:
        """`on_failed_read` is told once of each hook point whose monitors raise."""
        self.on_pass: Callable[[PassTimes], None] = lambda _: None
        """Told how long reading and steering took, of each forward pass, in its thread."""
        self._on_failed_read = on_failed_read
        self._blocks = blocks
        self._hooks = ExitStack()
        self.install(bank, vectors)

    def install(self, bank: Bank, vectors: Mapping[str, SteeringVector]) -> None:
        """Exchange bank and vectors, between forward passes. If it raises, the old ones stay in place."""
        on_device = {name: vectors[name].to(bank.device) for name in sorted(vectors)}
        points = {
            *bank.hook_points,
            *(d.hook_point for vector in on_device.values() for d in vector.directions),
        }
        hooks = attach(self._blocks, sorted(points), self._visit)
        self._hooks.close()
        self._hooks, self.bank, self._vectors = hooks, bank, on_device
        self._pass: _Pass | None = None
        self._dropped = torch.zeros((), dtype=torch.int64, device=bank.device)
        self._norms = NormMeter(bank.hook_points, bank.device)
        self._unreadable: set[HookPoint] = set()
        self._stopwatch = Stopwatch(bank.device, self._passed)

    def begin(self, spans: Sequence[RowSpan]) -> None:
        """Announce the rows of the next forward pass, in row order. An earlier pass that did not end is forgotten.

        Raises KeyError for a vector that is not installed.
        """
        self._pass = None
        num_rows = sum(span.num_rows for span in spans)
        self._norms.begin()
        self._stopwatch.begin()
        self._pass = _Pass(num_rows, self.bank.begin(num_rows), self._plan_steering(spans))

    def end(self) -> Tensor:
        """The raw values of all rows: [n_rows, bank.num_columns] float32, on the device."""
        if self._pass is None:
            raise RuntimeError("end() without begin()")
        buffer, self._pass = self._pass.buffer, None
        self._stopwatch.end()
        return self.bank.end(buffer)

    def dropped_edits(self) -> int:
        """How many row edits were dropped since install() because the result was not finite. Waits for the device."""
        return int(self._dropped.item())

    def row_norms(self) -> dict[HookPoint, NormSummary]:
        """What was sampled of the rows at the bank's hook points since install(). Waits for the device."""
        return self._norms.summary()

    def close(self) -> None:
        """Remove all hooks."""
        self._hooks.close()
        self._pass = None

    def _passed(self, times: PassTimes) -> None:
        self.on_pass(times)

    def _plan_steering(self, spans: Sequence[RowSpan]) -> dict[HookPoint, list[_Steered]]:
        """Rows and strengths by vector: one operation per vector and hook point, however many requests use it.

        Vectors are applied in the order of their names, so that a request's result does not depend on its neighbours.
        """
        strengths: dict[str, dict[int, float]] = {}  # by vector and row
        start = 0
        for span in spans:
            for edit in span.edits:
                rows = range(start, start + span.num_rows)
                strengths.setdefault(edit.vector.name, {}).update(dict.fromkeys(rows, edit.strength))
            start += span.num_rows
        steered: dict[HookPoint, list[_Steered]] = {}
        for name, by_row in sorted(strengths.items()):
            vector, device = self._vectors[name], self.bank.device
            rows_index = torch.tensor(list(by_row), device=device)
            strength = torch.tensor(list(by_row.values()), dtype=torch.float32, device=device)[:, None]
            for direction in vector.directions:
                steered.setdefault(direction.hook_point, []).append(
                    _Steered(vector, direction, rows_index, strength)
                )
        return steered

    def _visit(self, point: HookPoint, hidden: Tensor) -> Tensor | None:
        """Read, then steer. hidden: [B, T, d_model] or [n, d_model]."""
        step = self._pass
        if step is None:
            return None
        rows = hidden.reshape(-1, hidden.shape[-1])
        if rows.shape[0] != step.num_rows:
            raise HookPointError(f"{point}: {rows.shape[0]} rows, but begin() announced {step.num_rows}")
        if point in step.seen:
            raise HookPointError(f"{point} fired twice in one forward pass; call begin() before each pass")
        step.seen.add(point)
        since = self._stopwatch.start()
        self._read(point, rows, step.buffer)
        self._norms.read(point, rows)
        self._stopwatch.stop("capture", since)
        steered = step.steered.get(point)
        if steered is None:
            return None
        since = self._stopwatch.start()
        edited = self._edited(rows, steered).view(hidden.shape)
        self._stopwatch.stop("steer", since)
        return edited

    def _read(self, point: HookPoint, rows: Tensor, buffer: Tensor) -> None:
        """A monitor that raises is one without a value. The model goes on: what follows is for the rules to say."""
        try:
            self.bank.read(point, rows, buffer)
        except torch.OutOfMemoryError:
            raise  # the whole pass is given up: a smaller one may fit
        except Exception as error:  # noqa: BLE001
            self.bank.spoil(point, buffer)
            if point not in self._unreadable:
                self._unreadable.add(point)
                self._on_failed_read(point, error)

    def _edited(self, rows: Tensor, steered: Sequence[_Steered]) -> Tensor:
        """A copy in which the steered rows differ, and no other."""
        edited = rows.clone()
        for s in steered:
            edited[s.rows], dropped = steer(edited[s.rows], s.vector, s.direction, s.strength)
            self._dropped += dropped
        return edited
