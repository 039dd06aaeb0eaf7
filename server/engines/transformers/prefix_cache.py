"""Prompt prefixes kept for later requests: keys, values *and the raw monitor values* of every position.

A hit that restored only keys and values would leave prompt tokens unscored: a fail-open bug. So each block carries
its monitor values, which the consumer replays through the aggregators as if the tokens had just been scored.
Only unsteered prompt tokens are stored, and the key holds the monitor set, so a block never outlives its meaning.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 32  # tokens


@dataclass(frozen=True, slots=True)
class Block:
    states: list[tuple[Tensor, Tensor]]  # per layer: keys and values [heads, BLOCK, head_dim]
    values: NDArray[np.float32]  # [BLOCK, num_columns]


class PrefixCache:
    """Least recently used blocks of `BLOCK` tokens, keyed by everything before and in them. `max_blocks` 0: off."""

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()
        self.hits = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def find(self, prompt_ids: Sequence[int], monitor_set: str) -> list[Block]:
        """The longest run of known blocks at the start of a prompt; never all of it, for its last token must be fed."""
        found: list[Block] = []
        if not self._max_blocks:
            return found
        for key in _chain(prompt_ids[:-1], monitor_set):
            block = self._blocks.get(key)
            if block is None:
                break
            self._blocks.move_to_end(key)
            found.append(block)
        self.hits += len(found)
        return found

    def missing(self, prompt_ids: Sequence[int], monitor_set: str) -> Iterator[tuple[bytes, int]]:
        """Key and first position of each whole block of a prompt that is not stored yet."""
        if self._max_blocks:
            for index, key in enumerate(_chain(prompt_ids, monitor_set)):
                if key not in self._blocks:
                    yield key, index * BLOCK

    def store(self, key: bytes, block: Block) -> None:
        self._blocks[key] = block
        while len(self._blocks) > self._max_blocks:
            self._blocks.popitem(last=False)


def _chain(ids: Sequence[int], monitor_set: str) -> Iterator[bytes]:
    """One key per whole block; each depends on all tokens up to its end."""
    key = hashlib.sha256(monitor_set.encode()).digest()
    for start in range(0, len(ids) - BLOCK + 1, BLOCK):
        key = hashlib.sha256(key + np.asarray(ids[start : start + BLOCK], dtype=np.int64).tobytes()).digest()
        yield key
