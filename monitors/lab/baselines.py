"""What a monitor has to beat: words (TF-IDF), and directions that mean nothing."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline

from monitors.aggregate import AggregatorSpec
from monitors.base import Monitor
from monitors.lab.dataset import Example
from monitors.lab.pooling import Pooled
from monitors.lab.scoring import Scorer
from monitors.lab.sections.base import Phase, RandomDirections, Statistic
from monitors.lab.statistics import Floats, Ints, auroc
from monitors.linear import Linear
from monitors.types import HookPoint

NUM_RANDOM = 40


def folds(labels: Ints, groups: NDArray[np.str_], num_folds: int, seed: int) -> Ints:
    """The fold of each example, [n] of 0 to num_folds - 1: groups whole, classes spread as evenly as that allows.

    Raises ValueError if a class has fewer groups than there are folds.
    """
    for label, name in ((1, "positive"), (0, "negative")):
        if (num := len(set(groups[labels == label]))) < num_folds:
            raise ValueError(
                f"the {name} examples are of {num} groups; {num_folds} folds need at least as many: "
                f"give more data, or fewer --folds"
            )
    found = np.zeros(len(labels), dtype=np.int64)
    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    for fold, (_, test) in enumerate(splitter.split(labels, labels, groups)):
        found[test] = fold
    return found


def tfidf(train: Sequence[Example], labels: Ints, test: Sequence[Example]) -> Floats:
    """Scores [n_test] of a logistic regression (C=10) on words and word pairs, all turns and the reply included."""
    model = _tfidf_model()
    model.fit([e.plain_text for e in train], labels)
    return np.asarray(model.decision_function([e.plain_text for e in test]), dtype=np.float64)


def tfidf_out_of_fold(examples: Sequence[Example], labels: Ints, fold: Ints) -> Floats:
    """Each example's score [n] by a model that was fitted on the other folds."""
    scores = np.zeros(len(labels))
    for one in np.unique(fold):
        inside, outside = np.flatnonzero(fold == one), np.flatnonzero(fold != one)
        train, test = [examples[int(i)] for i in outside], [examples[int(i)] for i in inside]
        scores[inside] = tfidf(train, labels[outside], test)
    return scores


def random_monitors(
    pooled: Pooled,
    point: HookPoint,
    phase: Phase,
    aggregator: AggregatorSpec,
    *,
    exclude_first: int = 0,
    seed: int = 0,
) -> list[Monitor]:
    """Directions drawn from the covariance of the pooled rows, each followed by its opposite: 2 * NUM_RANDOM monitors.

    Where the aggregator is an attention, which a direction has none of, all tokens weigh alike.
    Isotropic ones would mostly read nothing: real activations vary along few directions (science, 4.1).
    """
    x = pooled.rows(point, phase, exclude_first)
    centred = x - x.mean(axis=0)
    drawn = np.random.default_rng(seed).normal(size=(NUM_RANDOM, len(x))) @ centred
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    scope = exclude_first if phase == "prompt" else 0
    return [
        Monitor(
            f"random_{number}_{sign}",
            Linear((point,), torch.tensor(sign_of * w, dtype=torch.float32)[None], torch.zeros(1)),
            aggregator.unweighted,
            exclude_first=scope,
        )
        for number, w in enumerate(drawn)
        for sign, sign_of in (("plus", 1.0), ("minus", -1.0))
    ]


def random_figures(
    pooled: Pooled,
    labels: Ints,
    point: HookPoint,
    phase: Phase,
    aggregator: AggregatorSpec,
    *,
    exclude_first: int = 0,
    statistic: Statistic = "max",
    seed: int = 0,
) -> RandomDirections:
    """AUROC of random directions over all examples, scored as the monitor is; of each the better of its two signs."""
    scorer = Scorer(random_monitors(pooled, point, phase, aggregator, exclude_first=exclude_first, seed=seed))
    return random_summary(paired_aurocs(labels, scorer.statistic(pooled.acts, phase, statistic)))


def paired_aurocs(labels: Ints, scores: Floats) -> Floats:
    """Of directions that are followed by their opposites, [n_examples, 2 m]: the better AUROC of each two, [m]."""
    found: Floats = np.array([auroc(labels, column) for column in scores.T]).reshape(-1, 2)
    return np.maximum(found[:, 0], found[:, 1])


def random_summary(found: Floats) -> RandomDirections:
    """From the AUROC of each direction, [m]."""
    return RandomDirections(
        num_directions=len(found),
        mean_auroc=float(found.mean()),
        p95_auroc=float(np.percentile(found, 95)),
        best_auroc=float(found.max()),
    )


def _tfidf_model() -> Pipeline:
    return make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=2000)
    )
