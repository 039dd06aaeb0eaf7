"""Does the monitor read the concept better than shams, random directions and the text's surface?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from monitors.base import Monitor
from monitors.lab.baselines import random_monitors, random_summary, tfidf
from monitors.lab.pooling import Pooled
from monitors.lab.recipes import Recipe, fit
from monitors.lab.scoring import Scorer
from monitors.lab.sections.base import Statistic
from monitors.lab.sections.causal import Read
from monitors.lab.statistics import Floats, Ints, auroc, auroc_interval, tpr_at
from monitors.types import HookPoint

_TINY = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """The examples that shams and baselines are fitted on, and those that everything is measured on."""

    select: Pooled
    test: Pooled

    @property
    def points(self) -> tuple[HookPoint, ...]:
        return self.test.acts.hook_points


def shams(recipe: Recipe, split: Split, num: int, seed: int) -> list[Monitor]:
    """Monitors by the same recipe on permuted labels."""
    labels = split.select.acts.labels
    rng = np.random.default_rng(seed)
    indices = range(len(labels))
    return [
        fit(recipe, split.select, indices, rng.permutation(labels), name=f"sham_{number}", seed=seed + number)
        for number in range(num)
    ]


def read(
    monitor: Monitor,
    recipe: Recipe,
    split: Split,
    sham_monitors: Sequence[Monitor],
    *,
    statistic: Statistic,
    num_random_draws: int,
    masked: Pooled | None,
    paraphrased: Pooled | None,
    seed: int,
) -> Read:
    """AUROC on the test examples, with what it must beat beside it."""
    test, labels = split.test, split.test.acts.labels
    aggregator = recipe.aggregator.unweighted
    first = Recipe("mass_mean", (split.points[0],), recipe.phase, aggregator, recipe.exclude_first)
    select_labels = split.select.acts.labels
    at_first = fit(
        first, split.select, range(len(select_labels)), select_labels, name="first_layer", seed=seed
    )
    scores = _scores([monitor, at_first, *sham_monitors], test, recipe, statistic)
    own = auroc_interval(labels, scores[:, 0], test.acts.groups, seed)
    sham_scores = scores[:, 2:]
    sham_aurocs = aurocs(labels, sham_scores)
    random_scores = _random(recipe, test, statistic=statistic, num_draws=num_random_draws, seed=seed)
    random = _either_sign(aurocs(labels, random_scores))
    lengths = np.array([len(tokens.ids) for tokens in test.acts.tokens], dtype=np.float64)
    words = tfidf(split.select.acts.examples, select_labels, test.acts.examples)
    return Read(
        auroc=own,
        tpr_at_1pct=tpr_at(labels, scores[:, 0], 0.01),
        random=random_summary(random),
        random_percentile=float((random <= own.value).mean()),
        sham_aurocs=tuple(sham_aurocs.tolist()),
        sham_percentile=beaten(labels, scores[:, 0], sham_scores),
        selectivity=own.value - float(sham_aurocs.mean()),
        length_auroc=float(_either_sign(aurocs(labels, lengths[:, None]))[0]),
        tfidf_auroc=auroc(labels, words),
        first_layer_auroc=auroc(labels, scores[:, 1]),
        masked_auroc=_auroc_on(masked, monitor, recipe, statistic),
        paraphrased_auroc=_auroc_on(paraphrased, monitor, recipe, statistic),
    )


def _auroc_on(other: Pooled | None, monitor: Monitor, recipe: Recipe, statistic: Statistic) -> float | None:
    """On other examples; None if there are none."""
    if other is None:
        return None
    return auroc(other.acts.labels, _scores([monitor], other, recipe, statistic)[:, 0])


def aurocs(labels: Ints, scores: Floats) -> Floats:
    """AUROC of each column of `scores` [n, m], by rank sums: [m]."""
    num_positive = int(labels.sum())
    ranks = rankdata(scores, axis=0)[labels == 1].sum(axis=0)
    above = ranks - num_positive * (num_positive + 1) / 2
    return np.asarray(above / (num_positive * (len(labels) - num_positive)), dtype=np.float64)


def beaten(labels: Ints, own: Floats, others: Floats) -> float:
    """The share of `others` [n, m] that `own` [n] reads better than, each by the better of its two signs.

    Where both separate the classes fully, AUROC says no more, and the distance of the classes in deviations decides.
    """
    pair = np.column_stack([own, others])
    found = aurocs(labels, pair)
    better = np.maximum(found[1:], 1 - found[1:])
    distances = _separation(labels, log_odds(pair))
    wins = (found[0] > better) | ((found[0] == better) & (distances[0] > np.abs(distances[1:])))
    return float(wins.mean())


def log_odds(scores: Floats) -> Floats:
    """Those columns of `scores` [n, m] that are probabilities, as log-odds; the others as they are."""
    are = ((scores >= 0) & (scores <= 1)).all(axis=0)
    p = np.where(are, scores, 0.5)
    logits = np.log(np.maximum(p, _TINY)) - np.log(np.maximum(1 - p, _TINY))
    return np.asarray(np.where(are, logits, scores))


def _separation(labels: Ints, scores: Floats) -> Floats:
    """(mean+ - mean-) / pooled standard deviation, of each column."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    spread = np.sqrt((positive.var(axis=0) + negative.var(axis=0)) / 2)
    return np.asarray((positive.mean(axis=0) - negative.mean(axis=0)) / np.maximum(spread, _TINY))


def _random(recipe: Recipe, test: Pooled, *, statistic: Statistic, num_draws: int, seed: int) -> Floats:
    """Scores [n, m] of random directions of the activations' covariance; the second of each two is the other's opposite."""
    found = []
    for draw in range(num_draws):
        monitors = random_monitors(
            test,
            recipe.hook_points[-1],
            recipe.phase,
            recipe.aggregator,
            exclude_first=recipe.exclude_first,
            seed=seed + draw,
        )
        found.append(_scores(monitors, test, recipe, statistic)[:, ::2])
    return np.concatenate(found, axis=1)


def _scores(monitors: Sequence[Monitor], pooled: Pooled, recipe: Recipe, statistic: Statistic) -> Floats:
    return Scorer(monitors).statistic(pooled.acts, recipe.phase, statistic)


def _either_sign(found: Floats) -> Floats:
    return np.maximum(found, 1 - found)
