"""The KV cache: one row per running request, allocated once, read and written through views.

A `SlotCache` is handed to the model as an ordinary transformers `Cache`. Before each forward pass the engine
says what the pass covers, with `prefill` or `decode`; each layer then writes the new keys and values in place
and returns a view of what the attention may see. Nothing is copied but the new positions.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclass(frozen=True, slots=True)
class _Prefill:
    """The pass feeds positions `start..end` of one row: states are [1, heads, end - start, head_dim]."""

    row: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Decode:
    """The pass feeds one token to each of `rows` (consecutive): states are [n_rows, heads, 1, head_dim]."""

    rows: slice
    row_index: Tensor  # [n_rows] int64
    position: Tensor  # [n_rows] int64, where each row's token goes
    visible: int  # the longest row's length after this pass


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is not typed
    """Keys and values of one layer, `[num_slots, heads, capacity, head_dim]`; the shape is known at the first write."""

    def __init__(self, cache: "SlotCache") -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        def allocate(states: Tensor) -> Tensor:
            shape = (self._cache.num_slots, states.shape[1], self._cache.capacity, states.shape[3])
            return torch.zeros(shape, dtype=states.dtype, device=states.device)

        self.keys, self.values = allocate(key_states), allocate(value_states)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        match self._cache.current:
            case _Prefill(row, start, end):
                self.keys[row, :, start:end] = key_states[0]
                self.values[row, :, start:end] = value_states[0]
                return self.keys[row : row + 1, :, :end], self.values[row : row + 1, :, :end]
            case _Decode(rows, row_index, position, visible):
                self.keys[row_index, :, position] = key_states[:, :, 0]
                self.values[row_index, :, position] = value_states[:, :, 0]
                return self.keys[rows, :, :visible], self.values[rows, :, :visible]
            case None:
                raise RuntimeError("the model was run outside a step of the engine that owns this cache")

    def get_seq_length(self) -> int:
        match self._cache.current:
            case _Prefill(_, start, _):
                return start
            case _Decode(_, _, _, visible):
                return visible - 1
            case None:
                return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return self._cache.capacity


class SlotCache(Cache):  # type: ignore[misc]  # transformers is not typed
    """`num_slots` rows of `capacity` positions for `num_layers` attention layers."""

    def __init__(self, *, num_layers: int, num_slots: int, capacity: int) -> None:
        self.num_slots = num_slots
        self.capacity = capacity
        self.current: _Prefill | _Decode | None = None
        super().__init__(layers=[_SlotLayer(self) for _ in range(num_layers)])

    def prefill(self, row: int, start: int, end: int) -> None:
        """The next pass feeds positions `start..end` of `row`."""
        self.current = _Prefill(row, start, end)

    def decode(self, first_row: int, position: Tensor, visible: int) -> None:
        """The next pass feeds one token to each row from `first_row` on, at `position` [n_rows]."""
        rows = slice(first_row, first_row + len(position))
        row_index = torch.arange(rows.start, rows.stop, device=position.device)
        self.current = _Decode(rows, row_index, position, visible)

    def move_row(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one row over another (a leaving row is replaced by the last one)."""
        for layer in self._allocated():
            layer.keys[target, :, :length] = layer.keys[source, :, :length]
            layer.values[target, :, :length] = layer.values[source, :, :length]

    def swap_rows(self, first: int, second: int, first_length: int, second_length: int) -> None:
        """Exchange two rows, of which so many positions are filled."""
        kept = self.read(first, 0, first_length)
        self.move_row(second, first, second_length)
        self.write(second, 0, kept)

    def scrub(self, row: int) -> None:
        """Forget everything in a row."""
        for layer in self._allocated():
            layer.keys[row].zero_()
            layer.values[row].zero_()

    def read(self, row: int, start: int, end: int) -> list[tuple[Tensor, Tensor]]:
        """A copy of some positions of a row: per layer keys and values, `[heads, end - start, head_dim]`."""
        return [
            (layer.keys[row, :, start:end].clone(), layer.values[row, :, start:end].clone())
            for layer in self._allocated()
        ]

    def write(self, row: int, start: int, states: list[tuple[Tensor, Tensor]]) -> None:
        """Put back what `read` returned, at position `start` of `row`."""
        for layer, (keys, values) in zip(self._allocated(), states, strict=True):
            layer.keys[row, :, start : start + keys.shape[1]] = keys
            layer.values[row, :, start : start + values.shape[1]] = values

    def _allocated(self) -> list[_SlotLayer]:
        return [layer for layer in self.layers if layer.is_initialized]
