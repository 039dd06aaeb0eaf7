"""Canaries for a monitor: token sequences made by chance, so that they hold nobody's text, with their scores."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from monitors.artifacts.canary import CANARY_REFERENCE, MAX_CANARY_TOKENS, Canary, CanarySequence
from monitors.base import Monitor
from monitors.lab.activations import collect
from monitors.lab.dataset import Example
from monitors.lab.scoring import Scorer
from monitors.lab.subject import Subject, Tokens

_LENGTHS = (12, 20, MAX_CANARY_TOKENS, MAX_CANARY_TOKENS)


def make_canary(monitor: Monitor, subject: Subject, weights_sha256: str, *, seed: int = 0) -> Canary:
    """Computed in float32 by a plain forward pass. Raises ValueError if the monitor leaves out that many first tokens."""
    if monitor.exclude_first >= min(_LENGTHS):
        raise ValueError(
            f"exclude_first is {monitor.exclude_first}: canaries of {min(_LENGTHS)} tokens would say nothing"
        )
    generator = torch.Generator().manual_seed(seed)
    vocabulary = int(subject.model.config.get_text_config().vocab_size)  # type: ignore[union-attr, operator]
    drawn = [tuple(torch.randint(vocabulary, (n,), generator=generator).tolist()) for n in _LENGTHS]
    sequences = {f"canary:{number}": ids for number, ids in enumerate(drawn)}
    reader = replace(
        subject,
        tokenize=lambda example: Tokens(sequences[example.id], len(sequences[example.id]), CANARY_REFERENCE),
    )
    with TemporaryDirectory() as cache:
        acts = collect(reader, [Example(name) for name in sequences], monitor.hook_points, Path(cache))
        scores = Scorer([monitor]).maxima(acts, "prompt")[:, 0].tolist()
    return Canary(
        monitor=monitor.name,
        weights_sha256=weights_sha256,
        sequences=tuple(
            CanarySequence(ids=ids, maximum=score) for ids, score in zip(drawn, scores, strict=True)
        ),
    )
