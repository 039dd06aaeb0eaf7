"""Drawing one token for one request from its logits."""

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.engines.base import SamplingParams
from server.grammars.matching import Matching

_GREEDY = 1e-5  # temperatures below this are the argmax: dividing by them would overflow
_NOT_FINITE = "the model's logits are not finite"


@dataclass(frozen=True, slots=True)
class Drawn:
    """A sampled token and the most likely ones, with log-probabilities (nats) of the raw logits."""

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


class Sampler:
    """One request's sampling: its parameters, its random generator, its grammar, and the counts that penalties need."""

    __slots__ = ("_bias", "_counts", "_generator", "_matching", "_params", "_prompt_ids")

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: list[int],
        device: torch.device,
        matching: Matching | None = None,
    ) -> None:
        self._params = params
        self._matching = matching  # to `params.grammar`
        self._generator = torch.Generator(device=device)
        self._generator.manual_seed(params.seed if params.seed is not None else secrets.randbits(63))
        self._counts: Counter[int] = Counter()
        self._prompt_ids = prompt_ids if params.repetition_penalty != 1.0 else []
        self._bias: tuple[Tensor, Tensor] | None = None
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias), dtype=torch.int64, device=device)
            values = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32, device=device)
            self._bias = ids, values

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the argmax of the raw logits is all that is asked for (one argmax then serves the batch)."""
        p = self._params
        is_raw = self._matching is None and self._bias is None and not self._penalises
        return is_raw and p.temperature < _GREEDY and p.logprobs is None

    @property
    def is_waiting(self) -> bool:
        """Whether drawing would wait for what the grammar allows."""
        return self._matching is not None and not self._matching.is_ready

    @property
    def _penalises(self) -> bool:
        p = self._params
        return bool(p.frequency_penalty or p.presence_penalty or p.repetition_penalty != 1.0)

    def draw(self, raw: Tensor) -> Drawn:
        """Sample from raw logits [vocab].

        Raises ValueError if they are not finite enough to draw from, RequestRefused where the grammar gives out.
        """
        raw = raw.float()
        adjusted = self._allow(self._adjust(raw))
        token_id = self._best(adjusted) if self._params.temperature < _GREEDY else self._draw(adjusted)
        self._counts[token_id] += 1
        if self._matching is not None:
            self._matching.take(token_id)
        if self._params.logprobs is None:
            return Drawn(token_id, None, ())
        return with_logprobs(raw[None], [token_id], self._params.logprobs)[0]

    def _adjust(self, raw: Tensor) -> Tensor:
        if self._bias is None and not self._penalises:
            return raw
        logits = raw.clone()
        params = self._params
        if self._counts and (params.frequency_penalty or params.presence_penalty):
            ids = torch.tensor(list(self._counts), device=raw.device)
            counts = torch.tensor(list(self._counts.values()), dtype=torch.float32, device=raw.device)
            logits[ids] -= params.frequency_penalty * counts + params.presence_penalty
        if params.repetition_penalty != 1.0:  # CTRL, arXiv 1909.05858: prompt and response alike
            seen = torch.tensor(
                sorted({*self._prompt_ids, *self._counts}), dtype=torch.int64, device=raw.device
            )
            values = logits[seen]
            logits[seen] = torch.where(
                values > 0, values / params.repetition_penalty, values * params.repetition_penalty
            )
        if self._bias is not None:
            ids, bias = self._bias
            logits[ids] += bias
        return logits

    def _allow(self, logits: Tensor) -> Tensor:
        """Nothing but what the grammar allows, whatever bias and penalties say."""
        if self._matching is None:
            return logits
        allowed = torch.from_numpy(self._matching.allowed()).to(logits.device)
        return logits.masked_fill(~allowed, -torch.inf)

    @staticmethod
    def _best(logits: Tensor) -> int:
        best = logits.max(dim=-1)
        if not bool(torch.isfinite(best.values)):
            raise ValueError(_NOT_FINITE)
        return int(best.indices)

    def _draw(self, logits: Tensor) -> int:
        params = self._params
        logits = logits / params.temperature
        if 0 < params.top_k < len(logits):
            kth = torch.topk(logits, params.top_k).values[-1]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        probabilities = torch.softmax(logits, dim=-1)
        if params.min_p > 0:
            probabilities = probabilities.masked_fill(probabilities < params.min_p * probabilities.max(), 0.0)
        if params.top_p < 1.0:
            probabilities = _nucleus(probabilities, params.top_p)
        if not bool(torch.isfinite(probabilities.sum())):
            raise ValueError(_NOT_FINITE)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of most likely tokens whose share reaches `top_p` (1904.09751). probabilities: [vocab]."""
    total = probabilities.sum()
    ordered, order = torch.topk(
        probabilities, min(1024, len(probabilities))
    )  # sorting a large vocabulary is slow
    if bool(ordered.sum() < top_p * total):
        ordered, order = probabilities.sort(descending=True)
    before = ordered.cumsum(0) - ordered
    inside = before < top_p * total
    inside[0] = True
    kept = torch.zeros_like(probabilities)
    kept[order[inside]] = ordered[inside]
    return kept


def with_logprobs(raw: Tensor, token_ids: Sequence[int], top: int) -> list[Drawn]:
    """Log-probabilities of one token per row, and of the `top` most likely ones. raw: [n, vocab] logits."""
    logprobs = torch.log_softmax(raw.float(), dim=-1)
    own = logprobs.gather(1, torch.tensor(token_ids, device=raw.device, dtype=torch.int64)[:, None])[
        :, 0
    ].tolist()
    best = torch.topk(logprobs, min(top, logprobs.shape[-1]))
    rows = zip(token_ids, own, best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        Drawn(token_id, value, tuple(zip(ids, values, strict=True))) for token_id, value, ids, values in rows
    ]
