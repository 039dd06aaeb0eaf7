"""Attention masks: 4-D additive, one per kind of attention layer.

Rows of a decode batch stand at different positions, which transformers' own mask builder can't express for
sliding windows; a ready-made 4-D mask is passed through untouched by every model that uses `masking_utils`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"


@dataclass(frozen=True, slots=True)
class MaskForm:
    """How one model wants its mask: one tensor, or a dict with one tensor per layer type."""

    layer_types: tuple[str, ...]
    as_dict: bool
    window: int = 0  # of sliding layers: a query sees itself and the `window - 1` tokens before it
    chunk: int = 0  # of chunked layers: a query sees its own chunk

    def build(self, position: Tensor, visible: int, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """Masks for queries at `position` [n_rows, n_queries] over keys 0..visible: each [n_rows, 1, n_queries, visible]."""
        query = position[:, None, :, None]
        key = torch.arange(visible, device=position.device)
        causal = key <= query
        masks = {kind: _additive(self._allowed(kind, causal, query, key), dtype) for kind in self.layer_types}
        return masks if self.as_dict else masks[self.layer_types[0]]

    def _allowed(self, kind: str, causal: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if kind == SLIDING:
            return causal & (key > query - self.window)
        if kind == CHUNKED:
            return causal & (key // self.chunk == query // self.chunk)
        return causal


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
        ~allowed, torch.finfo(dtype).min
    )


def candidate_forms(config: Any) -> Iterator[MaskForm]:
    """The forms that a model with this (text) config may want, the likeliest first; the start-up check picks one."""
    window = getattr(config, "sliding_window", None) or 0
    chunk = getattr(config, "attention_chunk_size", None) or 0
    kinds = tuple(dict.fromkeys(getattr(config, "layer_types", None) or ()))
    if kinds and set(kinds) <= {FULL, SLIDING, CHUNKED}:
        # models that index their masks by layer type may ask for a kind that no layer uses
        every = tuple(dict.fromkeys((*kinds, FULL, *([SLIDING] if window else []))))
        yield MaskForm(every, as_dict=True, window=window, chunk=chunk)
    if window:
        yield MaskForm((SLIDING,), as_dict=False, window=window)
    yield MaskForm((FULL,), as_dict=False)
