"""Which sequence stands in which row of the KV cache. Rows 0..D-1 decode; those from D on are being prefilled."""

from collections.abc import Set as AbstractSet

import torch

from server.engines.transformers.kv import SlotCache
from server.engines.transformers.sequence import Sequence


class RowTable:
    """Keeps the occupied rows together, so that a decode pass runs on views: a leaving row is replaced by the last one."""

    def __init__(self, cache: SlotCache) -> None:
        self._cache = cache
        self.decoding: list[Sequence] = []
        self.prefilling: list[Sequence] = []

    def __len__(self) -> int:
        return len(self.decoding) + len(self.prefilling)

    @property
    def kv_tokens(self) -> int:
        return sum(sequence.num_fed for sequence in [*self.decoding, *self.prefilling])

    def can_admit(self, ready: AbstractSet[Sequence]) -> bool:
        """Prompts are fed one after the other; one whose consumer has paused does not hold up the next."""
        has_room = len(self) < self._cache.num_slots
        return has_room and not any(sequence in ready for sequence in self.prefilling)

    def admit(self, sequence: Sequence) -> None:
        self.prefilling.append(sequence)

    def row(self, sequence: Sequence) -> int:
        """The row of a sequence that is being prefilled."""
        return len(self.decoding) + self.prefilling.index(sequence)

    @torch.inference_mode()
    def promote(self, sequence: Sequence) -> None:
        """The prompt is fed: the sequence decodes from now on."""
        index, first = self.prefilling.index(sequence), self.prefilling[0]
        if index:
            row = len(self.decoding)
            self._cache.swap_rows(row, row + index, first.num_fed, sequence.num_fed)
            self.prefilling[index] = first
        self.prefilling.pop(0)
        self.decoding.append(sequence)

    @torch.inference_mode()
    def remove(self, sequence: Sequence, *, scrub: bool = False) -> None:
        """Free a sequence's row. A sequence that isn't here is ignored.

        `scrub` after a failure: keys or values that are not finite would poison the row's next occupant, even behind a mask.
        """
        if sequence in self.prefilling:
            index, last = self.prefilling.index(sequence), len(self.prefilling) - 1
            self._close_gap(
                len(self.decoding) + index, len(self.decoding) + last, self.prefilling[last], scrub=scrub
            )
            self.prefilling[index] = self.prefilling[last]
            self.prefilling.pop()
        elif sequence in self.decoding:
            index, last = self.decoding.index(sequence), len(self.decoding) - 1
            self._close_gap(index, last, self.decoding[last], scrub=scrub)
            self.decoding[index] = self.decoding[last]
            self.decoding.pop()
            if self.prefilling:
                tail = self.prefilling.pop()
                self._cache.move_row(last + 1 + len(self.prefilling), last, tail.num_fed)
                self.prefilling.insert(0, tail)

    def _close_gap(self, row: int, last_row: int, last: Sequence, *, scrub: bool) -> None:
        if scrub:
            self._cache.scrub(row)
        if row != last_row:
            self._cache.move_row(last_row, row, last.num_fed)
