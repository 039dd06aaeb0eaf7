"""An SAE that a trainer chooses features of."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from monitors.lab.pooling import Pooled
from monitors.lab.sections.base import Phase
from monitors.sae.base import SparseAutoencoder

_ROWS = 2048  # encoded at once

_Key = tuple[str, Phase, int]


@dataclass(frozen=True, slots=True, eq=False)
class SaeSource:
    """The SAE, and how a monitor may read it."""

    sae: SparseAutoencoder
    sha256: str  # of its files
    whole: bool = False  # computing all features for every token, as top-k SAEs need
    _peaks: dict[_Key, Tensor] = field(default_factory=dict, repr=False)

    def peaks(self, pooled: Pooled, phase: Phase, exclude_first: int) -> Tensor:
        """The maximum of each feature over a phase of each example: [n_examples, d_sae] float32. Computed once.

        Raises ValueError for rows that are not finite.
        """
        key = (str(pooled.acts.folder), phase, exclude_first)
        if key not in self._peaks:
            examples = pooled.acts.examples
            found = torch.empty(len(examples), self.sae.num_features)
            for index, example in enumerate(examples):
                rows = pooled.tokens(self.sae.hook_point, phase, index, exclude_first)
                if not rows.isfinite().all():
                    raise ValueError(
                        f"example {example.id!r}: activations at {self.sae.hook_point} are not finite"
                    )
                parts = [self.sae.encode(part).amax(dim=0) for part in torch.split(rows, _ROWS)]
                found[index] = torch.stack(parts).amax(dim=0)
            self._peaks[key] = found
        return self._peaks[key]
