"""Scores token by token: which examples a report shows, and how warm each token is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from monitors.base import Monitor
from monitors.lab.activations import Activations
from monitors.lab.scoring import Floats, Scorer
from monitors.lab.sections.base import Phase

_OUTCOMES = {(1, True): "caught", (1, False): "missed", (0, True): "false alarm", (0, False): "passed"}


@dataclass(frozen=True, slots=True)
class HeatToken:
    text: str = field(repr=False)
    score: float | None  # None: out of the monitor's scope
    warmth: float  # 0 to 1, over the scores of all examples shown


@dataclass(frozen=True, slots=True)
class HeatExample:
    """One example's tokens with the running score after each."""

    id: str
    outcome: str  # caught | missed | false alarm | passed
    maximum: float
    tokens: tuple[HeatToken, ...]


def heat_examples(
    monitor: Monitor,
    acts: Activations,
    phase: Phase,
    threshold: float,
    token_texts: Callable[[Sequence[int]], list[str]],
    *,
    num_each: int = 2,
) -> tuple[HeatExample, ...]:
    """Up to `num_each` examples of each outcome: those nearest the threshold, where a reader learns most.

    Raises ValueError if an example has no label.
    """
    scorer = Scorer([monitor])
    maxima = scorer.maxima(acts, phase)[:, 0]
    labels = acts.labels
    chosen: list[tuple[str, int]] = []
    for (label, flagged), outcome in _OUTCOMES.items():
        found = np.flatnonzero((labels == label) & ((maxima > threshold) == flagged) & np.isfinite(maxima))
        nearest = found[np.argsort(np.abs(maxima[found] - threshold), kind="stable")][:num_each]
        chosen += [(outcome, int(index)) for index in nearest]
    running = [scorer.running(acts, index)[phase][:, 0] for _, index in chosen]
    warmth = _warmth(running)
    shown = []
    for (outcome, index), scores in zip(chosen, running, strict=True):
        its = acts.tokens[index]
        ids = its.ids[: its.num_prompt] if phase == "prompt" else its.ids[its.num_prompt :]
        tokens = tuple(
            HeatToken(text, float(score) if np.isfinite(score) else None, warmth(float(score)))
            for text, score in zip(token_texts(ids), scores, strict=True)
        )
        shown.append(HeatExample(acts.examples[index].id, outcome, float(maxima[index]), tokens))
    return tuple(shown)


def _warmth(running: Sequence[Floats]) -> Callable[[float], float]:
    """From a score to 0..1: its place between the 5th and the 99.5th percentile of all scores shown."""
    finite = np.concatenate([scores[np.isfinite(scores)] for scores in running]) if running else np.zeros(1)
    low, high = np.percentile(finite, [5, 99.5]) if len(finite) else (0.0, 1.0)

    def warmth(score: float) -> float:
        if not np.isfinite(score) or high <= low:
            return 0.0
        return float(np.clip((score - low) / (high - low), 0, 1))

    return warmth
