"""Sets of SAE features, chosen by how well the maximum of each over an example tells the classes apart (2603.02219).

They are chosen on the training examples alone; with thousands of features, those that look good by chance are many.
"""

from dataclasses import replace

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from monitors.lab.sae.source import SaeSource
from monitors.lab.statistics import Floats, Ints
from monitors.lab.trainers.base import Settings, Task
from monitors.lab.trainers.linear import MAX_STEPS
from monitors.sae_features import Combine, SaeFeatures

_RANKED = 1024  # features, by Cohen's d, for which AUROC is computed
_CHANCE = 0.5


def sae_features(task: Task, settings: Settings) -> SaeFeatures:
    """A logistic regression on the mean of the chosen features over tokens, standardised: the mean of the tokens' values."""
    source, peaks = _read(task)
    chosen = choose(peaks, task.labels, int(settings["num_features"]))
    probe = _probe(source, chosen, np.ones(len(chosen)), np.zeros(len(chosen)), Combine.SUM)
    (point,) = task.hook_points
    with torch.no_grad():
        tokens = (task.pooled.tokens(point, task.phase, i, task.exclude_first) for i in task.indices)
        x = torch.stack([probe.activations(rows).mean(dim=0) for rows in tokens]).double().numpy()
    mean, std = x.mean(axis=0), x.std(axis=0)
    std[std == 0] = 1.0
    model = LogisticRegression(C=1 / settings["penalty"], max_iter=MAX_STEPS, class_weight="balanced")
    model.fit((x - mean) / std, task.labels)
    weight = model.coef_[0] / std
    bias = np.zeros(len(chosen))
    bias[0] = model.intercept_[0] - weight @ mean  # of the sum: it may stand with any of them
    return replace(probe, weight=_float(weight), bias=_float(bias))


def sae_features_max(task: Task, settings: Settings) -> SaeFeatures:
    """max_j (f_j - tau_j) / s_j: tau the `quantile` of a feature's maximum over negative examples, s its deviation in the classes.

    Only features that tell the presence are chosen.
    """
    source, peaks = _read(task)
    chosen = choose(peaks, task.labels, int(settings["num_features"]), only_presence=True)
    own = peaks[:, chosen].astype(np.float64)
    positive, negative = own[task.labels == 1], own[task.labels == 0]
    spread = np.sqrt((positive.var(axis=0) + negative.var(axis=0)) / 2)
    spread = np.where(spread > 0, spread, np.abs(own).max(axis=0))
    tau = np.quantile(negative, settings["quantile"], axis=0)
    return _probe(source, chosen, 1 / spread, -tau / spread, Combine.MAX)


def choose(peaks: Floats, labels: Ints, num: int, *, only_presence: bool = False) -> list[int]:
    """The features whose maximum tells most: by AUROC, of equal ones by Cohen's d with each feature's own deviation.

    peaks: [n, d_sae]. Raises ValueError if there is none.
    """
    positive, negative = peaks[labels == 1], peaks[labels == 0]
    spread = np.sqrt((positive.var(axis=0) + negative.var(axis=0)) / 2)
    distance = positive.mean(axis=0) - negative.mean(axis=0)
    d = np.divide(distance, spread, out=np.sign(distance) * 1e6, where=spread > 0)
    promising = np.argsort(-np.abs(d), kind="stable")[:_RANKED]
    ranks = rankdata(peaks[:, promising], axis=0)[labels == 1].sum(axis=0)
    above = ranks - len(positive) * (len(positive) + 1) / 2
    tells = above / (len(positive) * len(negative)) - _CHANCE
    if not only_presence:
        tells = np.abs(tells)
    order = np.lexsort((-np.abs(d[promising]), -tells))
    chosen = [int(promising[place]) for place in order[: max(1, num)] if tells[place] > 0]
    if not chosen:
        raise ValueError("no feature of the SAE tells the classes apart: take another SAE, or another kind")
    return chosen


def _read(task: Task) -> tuple[SaeSource, Floats]:
    """The SAE, and the maxima of its features over the task's examples: [n, d_sae]."""
    source = task.sae
    if source is None:
        raise ValueError("this kind chooses features of an SAE: give its folder with --sae")
    peaks = source.peaks(task.pooled, task.phase, task.exclude_first)[list(task.indices)]
    return source, peaks.numpy()


def _probe(
    source: SaeSource, chosen: list[int], weight: Floats, bias: Floats, combine: Combine
) -> SaeFeatures:
    return SaeFeatures.of(
        source.sae, chosen, _float(weight), _float(bias), combine=combine, whole=source.whole
    )


def _float(values: Floats) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)
