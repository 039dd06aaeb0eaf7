"""What the features of an SAE stand for: how often each is active, where most, and how well it tells labelled examples apart.

The contexts hold the user's own text, so they are written only to the file that was asked for.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import rankdata
from torch import Tensor

from monitors.lab.activations import Activations
from monitors.sae.base import SparseAutoencoder

FEATURES_FILE = "features.json"
_WINDOW = 8  # tokens shown on either side


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ContextPart(_Part):
    """A place where a feature is most active in one example."""

    example: str
    activation: float
    token: str
    before: str
    after: str


class FeaturePart(_Part):
    """One feature."""

    index: int
    frequency: float  # share of tokens on which it is active
    max_activation: float
    auroc: float | None = (
        None  # of its maximum over an example, against the label; below .5: it tells the absence
    )
    contexts: tuple[ContextPart, ...] = Field(default=(), repr=False)


class FeaturesFile(_Part):
    """features.json."""

    schema_: Literal["interlock.sae-features/v1"] = Field(default="interlock.sae-features/v1", alias="schema")
    sae_sha256: str
    fingerprint: str  # of the model
    hook_point: str
    num_tokens: int
    num_examples: int
    features: tuple[FeaturePart, ...]  # with labels: those that tell most first; else by index


@torch.inference_mode()
def describe(
    sae: SparseAutoencoder,
    acts: Activations,
    token_texts: Callable[[Sequence[int]], list[str]],
    *,
    top: int,
    sha256: str,
    fingerprint: str,
    exclude_first: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FeaturesFile:
    """Describe every feature that was ever active, with its `top` examples. Raises ValueError without tokens."""
    num = len(acts.examples)
    peaks = torch.zeros(num, sae.num_features)  # the maximum over each example
    places = torch.zeros(num, sae.num_features, dtype=torch.int32)
    active = torch.zeros(sae.num_features)
    num_tokens = 0
    for index in range(num):
        x = acts.rows(sae.hook_point, index)[exclude_first:]
        if len(x):
            f = sae.encode(x)
            best = f.max(dim=0)
            peaks[index], places[index] = best.values, (best.indices + exclude_first).int()
            active += (f > 0).sum(dim=0)
            num_tokens += len(x)
        progress(index + 1, num)
    if not num_tokens:
        raise ValueError("no tokens to look at")
    aurocs = _aurocs(acts, peaks)
    found = [
        FeaturePart(
            index=j,
            frequency=active[j].item() / num_tokens,
            max_activation=peaks[:, j].max().item(),
            auroc=None if aurocs is None else float(aurocs[j]),
            contexts=_contexts(acts, token_texts, peaks[:, j], places[:, j], top),
        )
        for j in torch.nonzero(active)[:, 0].tolist()
    ]
    found.sort(key=lambda part: 0.0 if part.auroc is None else -abs(part.auroc - 0.5))
    return FeaturesFile(
        sae_sha256=sha256,
        fingerprint=fingerprint,
        hook_point=str(sae.hook_point),
        num_tokens=num_tokens,
        num_examples=num,
        features=tuple(found),
    )


def _aurocs(acts: Activations, peaks: Tensor) -> NDArray[np.float64] | None:
    """Of every feature at once, from mid-ranks (Mann-Whitney); None unless there are examples of both labels."""
    known = [i for i, example in enumerate(acts.examples) if example.label is not None]
    labels = np.array([acts.examples[i].label for i in known])
    positive = labels == 1
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not (num_positive and num_negative):
        return None
    ranks = rankdata(peaks[known].numpy(), axis=0)
    above: NDArray[np.float64] = ranks[positive].sum(axis=0) - num_positive * (num_positive + 1) / 2
    return above / (num_positive * num_negative)


def _contexts(
    acts: Activations,
    token_texts: Callable[[Sequence[int]], list[str]],
    peaks: Tensor,
    places: Tensor,
    top: int,
) -> tuple[ContextPart, ...]:
    best = peaks.topk(min(top, len(peaks)))
    found = []
    for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        if value > 0:
            ids, at = acts.tokens[index].ids, int(places[index])
            start = max(0, at - _WINDOW)
            texts = token_texts(ids[start : at + _WINDOW + 1])
            cut = at - start
            found.append(
                ContextPart(
                    example=acts.examples[index].id,
                    activation=value,
                    token=texts[cut],
                    before="".join(texts[:cut]),
                    after="".join(texts[cut + 1 :]),
                )
            )
    return tuple(found)
