"""Where the raw values of each monitor stand, side by side in the order of the monitors."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from monitors.base import Monitor


def value_slices(monitors: Sequence[Monitor]) -> tuple[slice, ...]:
    """The columns of each monitor."""
    ends = accumulate((monitor.transform.num_values for monitor in monitors), initial=0)
    return tuple(slice(start, stop) for start, stop in pairwise(ends))


class Picker:
    """The values of some monitors among those of an engine, which move when monitors are exchanged under traffic."""

    def __init__(self, monitors: Sequence[Monitor]) -> None:
        self._monitors = tuple(monitors)
        self._layout: tuple[Monitor, ...] | None = None
        self._columns: NDArray[np.intp] = np.empty(0, np.intp)
        self._is_complete = True
        self._width = 0  # of the layout

    def pick(self, values: NDArray[np.float32], layout: tuple[Monitor, ...]) -> NDArray[np.float32]:
        """values: [n, num_values of the layout] -> [n, num_values of these monitors].

        A monitor that isn't there reads NaN, and so fails closed. Raises ValueError for another number of values.
        """
        if layout is not self._layout:
            self._find(layout)
        if values.shape[1:] != (self._width,):
            raise ValueError(f"values have shape {values.shape}; needs [n, {self._width}]")
        if not self._is_complete:
            values = np.pad(values, ((0, 0), (0, 1)), constant_values=np.nan)
        return values[:, self._columns]

    def _find(self, layout: tuple[Monitor, ...]) -> None:
        slices = value_slices(layout)
        self._width = slices[-1].stop if slices else 0
        place = dict(zip(map(id, layout), slices, strict=True))
        found: list[int] = []
        for monitor in self._monitors:
            where = place.get(id(monitor))
            found += [-1] * monitor.transform.num_values if where is None else range(where.start, where.stop)
        self._columns = np.array(found, np.intp)
        self._is_complete = -1 not in found
        self._layout = layout
