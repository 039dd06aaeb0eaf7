"""Linear probes on pooled rows: the probe of a mean is the mean of the probe, so they run token by token.

Rows are standardised with the training examples' mean and deviation, per channel: a massive-activation channel weighs no
more than another. The standardisation is folded into weights and bias, exactly.
"""

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from monitors.lab.pooling import Pooling
from monitors.lab.statistics import Floats
from monitors.lab.trainers.base import Settings, Task
from monitors.linear import Linear

MAX_STEPS = 5000


def logistic(task: Task, settings: Settings) -> Linear:
    """min sum BCE + penalty / 2 ||w||^2 on standardised rows, classes weighted alike."""
    return _logistic(task, settings, "mean")


def last_token(task: Task, settings: Settings) -> Linear:
    """As `logistic`, on the last row of the phase instead of the mean of its rows."""
    return _logistic(task, settings, "last")


def mass_mean(task: Task, settings: Settings) -> Linear:
    """w = mu+ - mu-, on standardised rows; with `whiten`, Sigma^-1 (mu+ - mu-) of the pooled covariance (2310.06824).

    The scale and the bias, which the direction leaves open, are those of a logistic regression on its projection.
    """
    x, mean, std = standardised_pooled(task)
    positive, negative = x[task.labels == 1], x[task.labels == 0]
    w = positive.mean(axis=0) - negative.mean(axis=0)
    if settings["whiten"]:
        centred = np.concatenate([positive - positive.mean(axis=0), negative - negative.mean(axis=0)])
        covariance = centred.T @ centred / len(centred)
        ridge = 1e-2 * np.trace(covariance) / len(covariance)
        w = np.linalg.solve(covariance + ridge * np.eye(len(covariance)), w)
    norm = np.linalg.norm(w)
    if not norm:
        raise ValueError("the classes have the same mean: there is no direction between them")
    w /= norm
    scaled = LogisticRegression(C=1e3, max_iter=MAX_STEPS, class_weight="balanced").fit(
        (x @ w)[:, None], task.labels
    )
    gain = max(float(scaled.coef_[0, 0]), 1e-6)  # never turned round: a direction has a sign
    return _folded(task, gain * w, float(scaled.intercept_[0]), mean, std)


def lda(task: Task, settings: Settings) -> Linear:
    """w = Sigma_w^-1 (mu+ - mu-) with Ledoit-Wolf shrinkage, which n < d needs."""
    x, mean, std = standardised_pooled(task)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=[0.5, 0.5]).fit(x, task.labels)
    return _folded(task, model.coef_[0], float(model.intercept_[0]), mean, std)


def _logistic(task: Task, settings: Settings, pooling: Pooling) -> Linear:
    x, mean, std = standardised_pooled(task, pooling)
    model = LogisticRegression(C=1 / settings["penalty"], max_iter=MAX_STEPS, class_weight="balanced")
    model.fit(x, task.labels)
    return _folded(task, model.coef_[0], float(model.intercept_[0]), mean, std)


def standardised_pooled(task: Task, pooling: Pooling = "mean") -> tuple[Floats, Floats, Floats]:
    """The pooled rows of all hook points side by side, [n, L * d], with the mean and deviation that were taken out."""
    parts = [
        task.pooled.rows(point, task.phase, task.exclude_first, pooling)[list(task.indices)]
        for point in task.hook_points
    ]
    return standardised(np.concatenate(parts, axis=1))


def standardised(x: Floats) -> tuple[Floats, Floats, Floats]:
    """x with each column's mean and deviation taken out, and both of them. x: [n, D]."""
    mean, std = x.mean(axis=0), x.std(axis=0)
    std[std < 1e-6 * (1.0 + np.abs(mean))] = 1.0  # a channel that doesn't vary says nothing
    return (x - mean) / std, mean, std


def _folded(task: Task, w: Floats, bias: float, mean: Floats, std: Floats) -> Linear:
    num_layers = len(task.hook_points)
    weight, centre, scale = (torch.tensor(part.reshape(num_layers, -1)) for part in (w, mean, std))
    return Linear.folded(task.hook_points, weight, bias, centre, scale)
