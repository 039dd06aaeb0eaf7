"""Novelty: the cloud of benign rows, low-rank and shrunk. Positive examples are not looked at."""

import numpy as np
import torch
from scipy.linalg import eigh
from sklearn.covariance import ledoit_wolf_shrinkage

from monitors.lab.trainers.base import Settings, Task
from monitors.novelty import Novelty

_LEAST = (
    1e-4  # of the mean eigenvalue: rows that lie in a plane, exactly, would make any other infinitely new
)


def novelty(task: Task, settings: Settings) -> Novelty:
    """The Gaussian of all tokens' rows of negative examples, standardised per channel.

    The covariance is shrunk towards a multiple of the identity as Ledoit and Wolf say (which n < d needs); its `rank` largest
    eigenvalues are kept, and the mean of the others is the variance of what is left.
    """
    (point,) = task.hook_points
    benign = [index for index, label in zip(task.indices, task.labels, strict=True) if not label]
    rows = [task.pooled.tokens(point, task.phase, index, task.exclude_first) for index in benign]
    x = torch.cat(rows).double().numpy()
    mean, std = x.mean(axis=0), x.std(axis=0)
    std[std < 1e-6 * (1.0 + np.abs(mean))] = 1.0  # a channel that doesn't vary: any change there is new
    y = (x - mean) / std
    num_rows, d = y.shape
    rank = max(1, min(int(settings["rank"]), d))
    covariance = y.T @ y / num_rows
    average = covariance.trace() / d
    values, vectors = eigh(covariance, subset_by_index=[d - rank, d - 1])  # rising
    rest = (average * d - values.sum()) / (d - rank) if rank < d else average  # of full rank nothing is left
    shrinkage = ledoit_wolf_shrinkage(y, assume_centered=True)
    kept, left = (
        np.maximum((1 - shrinkage) * part + shrinkage * average, _LEAST * average)
        for part in (values[::-1], np.array([rest]))
    )
    parts = (mean, std, vectors.T[::-1].copy(), kept, left)
    return Novelty(point, *(torch.tensor(part, dtype=torch.float32) for part in parts))
