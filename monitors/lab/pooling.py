"""One row per example: the mean of its residual stream over a phase, or the last row. Computed once per hook point."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from monitors.lab.activations import SHARD, Activations
from monitors.lab.dataset import Example
from monitors.lab.sections.base import Phase
from monitors.lab.statistics import Floats
from monitors.lab.subject import Tokens
from monitors.types import HookPoint

Pooling = Literal["mean", "last"]


class Pooled:
    """Activations, and what was pooled of them so far."""

    def __init__(self, acts: Activations) -> None:
        self.acts = acts
        self._found: dict[tuple[HookPoint, Phase, int, Pooling], Floats] = {}

    def rows(
        self, point: HookPoint, phase: Phase, exclude_first: int = 0, pooling: Pooling = "mean"
    ) -> Floats:
        """[n_examples, d_model] float64. Raises ValueError for an example without a token in scope, or with rows not finite."""
        key = (point, phase, exclude_first, pooling)
        if key not in self._found:
            self._found[key] = np.concatenate(
                [self._shard(first, *key) for first in range(0, len(self.acts.examples), SHARD)]
            )
        return self._found[key]

    def tokens(self, point: HookPoint, phase: Phase, index: int, exclude_first: int = 0) -> Tensor:
        """All rows in scope of one example: [n_tokens, d_model] float32."""
        return self._scope(self.acts.rows(point, index), phase, index, exclude_first)

    def drifts(self, point: HookPoint, phase: Phase, indices: Sequence[int]) -> Floats:
        """What the last row of the phase has moved from the reference row: [n, d_model] float64.

        Raises ValueError for an example without a reference, or whose phase ends before it.
        """
        found = []
        for index, rows in zip(indices, self.acts.batch(point, indices), strict=True):
            tokens = self.acts.tokens[index]
            last = tokens.num_prompt - 1 if phase == "prompt" else len(tokens.ids) - 1
            if tokens.reference is None or last <= tokens.reference:
                raise ValueError(
                    f"example {self.acts.examples[index].id!r} has nothing after its first user message, from which "
                    "drift is measured; give conversations that go on after it"
                )
            found.append((rows[last].double() - rows[tokens.reference].double()).numpy())
        return np.stack(found)

    def _shard(
        self, first: int, point: HookPoint, phase: Phase, exclude_first: int, pooling: Pooling
    ) -> Floats:
        indices = range(first, min(first + SHARD, len(self.acts.examples)))
        found = []
        for index, rows in zip(indices, self.acts.batch(point, indices), strict=True):
            own = self._scope(rows, phase, index, exclude_first).double()
            if not own.isfinite().all():
                name = self.acts.examples[index].id
                raise ValueError(
                    f"example {name!r}: activations at {point} are not finite, as in a model that overflows in float16; "
                    "load it in bfloat16 or float32, or leave the layer out with --layers"
                )
            found.append((own.mean(dim=0) if pooling == "mean" else own[-1]).numpy())
        return np.stack(found)

    def _scope(self, rows: Tensor, phase: Phase, index: int, exclude_first: int) -> Tensor:
        return in_scope(rows, self.acts.examples[index], self.acts.tokens[index], phase, exclude_first)


def in_scope(rows: Tensor, example: Example, tokens: Tokens, phase: Phase, exclude_first: int) -> Tensor:
    """Those rows of an example that a monitor of this phase reads. Raises ValueError if there is none."""
    own = rows[exclude_first : tokens.num_prompt] if phase == "prompt" else rows[tokens.num_prompt :]
    if not len(own):
        raise ValueError(f"example {example.id!r} has no token in the {phase} that the monitor would read")
    return own
