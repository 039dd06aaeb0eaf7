"""All monitors compiled into one matmul per hook point, and their functions.

A monitor's value is the sum of its columns. In the row buffer the columns of a hook point lie side by side, alike next
to alike, so that scaling and rectifying act on slices; the values of functions follow. `end` gathers them into the
values of each monitor. The buffer starts as NaN, so a hook point that was not read gives NaN to every monitor that needs it.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from enum import IntEnum
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from monitors.base import Column, Monitor, Rectifier, RowFunction, Scale
from monitors.layout import value_slices
from monitors.types import HookPoint

_T = TypeVar("_T")


class _Shape(IntEnum):
    """What follows the affine part of a column."""

    NONE = 0
    STEP = 1  # ReLU and JumpReLU: p * (p > threshold)
    GATED = 2  # ReLU(gain * p + offset) * (p > threshold)


@dataclass(frozen=True, slots=True)
class _Rectified:
    """A slice of rectified columns; each tensor is [width] float32."""

    columns: slice
    shape: _Shape
    threshold: Tensor
    gain: Tensor
    offset: Tensor

    def apply(self, p: Tensor) -> None:
        """In place. Off means `p * 0`, so that what is not finite does not turn into 0."""
        part = p[:, self.columns]
        is_on = part > self.threshold
        if self.shape is _Shape.GATED:
            part.copy_(torch.where(is_on, torch.addcmul(self.offset, part, self.gain).relu_(), part * 0.0))
        else:
            part.mul_(is_on)


@dataclass(frozen=True, slots=True)
class _Compiled:
    """The columns of one hook point: p = r(x) * (x @ weight) + bias, then the rectifiers."""

    weight: Tensor  # [d_model, width] float32
    bias: Tensor  # [width] float32
    scaled: tuple[tuple[slice, Scale], ...]
    rectified: tuple[_Rectified, ...]
    columns: slice  # of the row buffer

    def read(self, x: Tensor, buffer: Tensor) -> None:
        p = buffer[:, self.columns]
        if self.scaled:
            torch.mm(x, self.weight, out=p)
            for columns, scale in self.scaled:
                p[:, columns] *= scale.of(x)
            p += self.bias
        else:
            torch.addmm(self.bias, x, self.weight, out=p)
        for rectified in self.rectified:
            rectified.apply(p)


@dataclass(frozen=True, slots=True)
class _Function:
    """A function of a hook point's rows, and where its values go in the row buffer."""

    function: RowFunction
    columns: slice

    def read(self, x: Tensor, buffer: Tensor) -> None:
        buffer[:, self.columns] = self.function.evaluate(x)


class Bank:
    """The monitors of a server, ready to be read. Immutable."""

    def __init__(self, monitors: Sequence[Monitor], device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.monitors = tuple(monitors)  # their values side by side, in this order (`layout`)
        self.digest = _digest(self.monitors)
        slices = value_slices(self.monitors)
        self.num_columns = slices[-1].stop if slices else 0

        parts: list[list[int]] = [[] for _ in range(self.num_columns)]  # of the row buffer, by value
        columns = [
            (column, values.start)
            for m, values in zip(self.monitors, slices, strict=True)
            for column in m.transform.columns
        ]
        functions = [
            (function, values)
            for m, values in zip(self.monitors, slices, strict=True)
            for function in m.transform.functions
        ]
        readers: dict[HookPoint, list[_Compiled | _Function]] = {}
        for point, compiled in self._compile_all(columns, parts):
            readers.setdefault(point, []).append(compiled)
        width = len(columns)
        for function, values in functions:
            where = slice(width, width := width + values.stop - values.start)
            readers.setdefault(function.hook_point, []).append(_Function(function.to(self.device), where))
            for value, place in enumerate(range(where.start, where.stop), start=values.start):
                parts[value].append(place)
        self._width = width + 1  # the last column stays 0: it pads sums of unequal length
        self._gather = self._gather_index(parts)
        self._readers = {point: tuple(readers[point]) for point in sorted(readers)}
        self.hook_points = tuple(self._readers)

    def _compile_all(
        self, columns: Sequence[tuple[Column, int]], parts: Sequence[list[int]]
    ) -> Iterator[tuple[HookPoint, _Compiled]]:
        """The matmul of each hook point; notes in `parts` where the columns of each value come to stand."""
        ordered = sorted(columns, key=lambda item: (item[0].hook_point, _shape(item[0]), item[0].scale))
        for place, (_, value) in enumerate(ordered):
            parts[value].append(place)
        for where, point in _runs((column for column, _ in ordered), lambda column: column.hook_point):
            yield point, self._compile([column for column, _ in ordered[where]], where)

    def begin(self, num_rows: int) -> Tensor:
        """A row buffer for one forward pass, all NaN."""
        buffer = torch.full((num_rows, self._width), torch.nan, device=self.device)
        buffer[:, -1] = 0.0
        return buffer

    def read(self, point: HookPoint, rows: Tensor, buffer: Tensor) -> None:
        """Read one hook point into the buffer. rows: [n, d_model], any float dtype; computed in float32. No sync."""
        readers = self._readers.get(point)
        if readers is not None:
            x = rows.detach().float()
            for reader in readers:
                reader.read(x, buffer)

    def spoil(self, point: HookPoint, buffer: Tensor) -> None:
        """Make NaN of what was, or half was, read at a hook point."""
        for reader in self._readers.get(point, ()):
            buffer[:, reader.columns] = torch.nan

    def end(self, buffer: Tensor) -> Tensor:
        """Each monitor's raw values per row: [n, num_columns] float32, NaN where a hook point was not read."""
        values = buffer.index_select(1, self._gather[0])
        for parts in self._gather[1:]:
            values += buffer.index_select(1, parts)
        return values

    def _gather_index(self, parts: Sequence[Sequence[int]]) -> Tensor:
        """Where the parts of each value stand in the buffer: [most parts of a value, num_columns] int64."""
        if not all(parts):
            raise ValueError("a monitor reads nothing: it has a value without a column or a function")
        most = max(map(len, parts), default=1)
        padding = self._width - 1
        padded = [[*own, *[padding] * (most - len(own))] for own in parts]
        return torch.tensor(padded, dtype=torch.int64, device=self.device).reshape(-1, most).T.contiguous()

    def _compile(self, columns: Sequence[Column], where: slice) -> _Compiled:
        scales = _runs(columns, lambda column: column.scale)
        shapes = _runs(columns, _shape)
        return _Compiled(
            weight=torch.stack([c.weight.float() for c in columns], dim=1).contiguous().to(self.device),
            bias=self._row(c.bias for c in columns),
            scaled=tuple((s, scale) for s, scale in scales if scale is not Scale.NONE),
            rectified=tuple(
                self._rectified(columns[s], s, shape) for s, shape in shapes if shape is not _Shape.NONE
            ),
            columns=where,
        )

    def _rectified(self, columns: Sequence[Column], where: slice, shape: _Shape) -> _Rectified:
        rectifiers = [c.rectifier or Rectifier() for c in columns]
        threshold, gain, offset = (
            self._row(values) for values in zip(*map(astuple, rectifiers), strict=True)
        )
        if shape is _Shape.STEP:
            threshold = threshold.clamp(min=0.0)  # ReLU(p) * (p > threshold) = p * (p > max(threshold, 0))
        return _Rectified(where, shape, threshold, gain, offset)

    def _row(self, values: Iterable[float]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.float32, device=self.device)


def _shape(column: Column) -> _Shape:
    match column.rectifier:
        case None:
            return _Shape.NONE
        case Rectifier(gain=1.0, offset=0.0):
            return _Shape.STEP
        case _:
            return _Shape.GATED


def _runs(columns: Iterable[Column], key: Callable[[Column], _T]) -> Iterator[tuple[slice, _T]]:
    """Neighbours with the same key, as slices."""
    start = 0
    for value, run in groupby(columns, key):
        stop = start + sum(1 for _ in run)
        yield slice(start, stop), value
        start = stop


def _digest(monitors: Sequence[Monitor]) -> str:
    """Of everything that a score depends on: keys caches of scores, and names the bank in audit records."""
    digest = hashlib.sha256()
    for m in monitors:
        digest.update(repr((m.name, m.version, m.aggregator, m.link, m.exclude_first)).encode())
        digest.update(
            repr((m.transform.kind, list(map(str, m.hook_points)), dict(m.transform.params))).encode()
        )
        for name, tensor in sorted(m.transform.tensors.items()):
            digest.update(repr((name, tuple(tensor.shape))).encode())
            digest.update(tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()
