"""The two forward passes of the engine: one prompt chunk of one row, or one token of each of several rows."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from server.engines.base import EngineError
from server.engines.transformers.kv import SlotCache
from server.engines.transformers.masks import MaskForm, candidate_forms

_CHEAP_LENGTH = 256


class Forward:
    """A causal language model over a `SlotCache`. Not thread-safe: one thread runs it."""

    def __init__(self, model: Any, cache: SlotCache, mask_form: MaskForm) -> None:
        self._model = model
        self.cache = cache
        self._mask_form = mask_form
        self._device: torch.device = model.device
        self._dtype: torch.dtype = model.dtype

    def prefill(self, row: int, start: int, ids: Sequence[int], *, all_logits: bool = False) -> Tensor:
        """Feed `ids` to `row` at positions from `start` on. Returns logits [len(ids), vocab], or of the last one only [1, vocab]."""
        end = start + len(ids)
        self.cache.prefill(row, start, end)
        position = torch.arange(start, end, device=self._device)[None]
        return self._run(
            torch.tensor([ids], device=self._device), position, end, keep=0 if all_logits else 1
        )[0]

    def decode(self, first_row: int, ids: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Feed one token to each of the rows from `first_row` on. Returns logits [n_rows, vocab]."""
        position = torch.tensor(positions, device=self._device)
        visible = max(positions) + 1
        self.cache.decode(first_row, position, visible)
        return self._run(torch.tensor(ids, device=self._device)[:, None], position[:, None], visible, keep=1)[
            :, -1
        ]

    def _run(self, ids: Tensor, position: Tensor, visible: int, *, keep: int) -> Tensor:
        logits: Tensor = self._model(
            input_ids=ids,
            position_ids=position,
            attention_mask=self._mask_form.build(position, visible, self._dtype),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits
        return logits


def choose_mask_form(model: Any, *, num_layers: int) -> MaskForm:
    """The first candidate form under which cached, chunked and batched passes equal one plain forward pass.

    Raises EngineError if none does: the architecture then can't be served by this engine.
    """
    config = model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None) or 0
    # go past the window where that is cheap, so that the choice is put to the test
    length = window + 8 if 0 < window <= _CHEAP_LENGTH else 24
    generator = torch.Generator().manual_seed(0)
    low, high = min(5, config.vocab_size - 1), config.vocab_size
    long, short = (
        torch.randint(low, high, (n,), generator=generator).tolist() for n in (length, length // 2)
    )
    tried: list[str] = []
    with torch.inference_mode():
        want = [_plain_logits(model, ids) for ids in (long, short)]
        for form in candidate_forms(config):
            name = f"{'dict of ' if form.as_dict else ''}{'/'.join(form.layer_types)}"
            try:
                got = _cached_logits(model, form, num_layers, long, short)
            except Exception as error:  # noqa: BLE001  # any failure only means: not this form
                tried.append(f"{name}: {type(error).__name__}: {error}")
                continue
            difference = max(_relative(have, plain) for have, plain in zip(got, want, strict=True))
            if difference <= (1e-3 if model.dtype == torch.float32 else 1e-1):
                return form
            tried.append(f"{name}: logits differ by {difference:.2g} from a plain forward pass")
    raise EngineError(
        f"the transformers engine can't serve {type(model).__name__}: with no known attention mask does a cached forward "
        f"pass equal a plain one ({'; '.join(tried)}). Architectures with linear attention, Mamba or ALiBi are not supported."
    )


def _plain_logits(model: Any, ids: list[int]) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, -2:]
    return logits


def _cached_logits(
    model: Any, form: MaskForm, num_layers: int, long: list[int], short: list[int]
) -> list[Tensor]:
    """Logits of the last two positions of both prompts: prefilled (one in two chunks), then decoded together."""
    forward = Forward(model, SlotCache(num_layers=num_layers, num_slots=2, capacity=len(long) + 1), form)
    half = len(long) // 2
    forward.prefill(0, 0, long[:half])
    first = [forward.prefill(0, half, long[half:-1]), forward.prefill(1, 0, short[:-1])]
    last = forward.decode(0, [long[-1], short[-1]], [len(long) - 1, len(short) - 1])
    return [torch.cat([before, after[None]]) for before, after in zip(first, last, strict=True)]


def _relative(have: Tensor, want: Tensor) -> float:
    scale = want.float().abs().max().clamp(min=1e-6)
    return float((have.float() - want.float()).abs().max() / scale)
