"""CAST conditions from labelled examples (2409.05907)."""

from typing import TypeVar

import numpy as np
import torch

from monitors.condition import Condition, MeanCondition
from monitors.lab.pooling import Pooling
from monitors.lab.statistics import auroc
from monitors.lab.trainers.base import Settings, Task

_Kind = TypeVar("_Kind", bound=Condition)
_CHANCE = 0.5


def last_condition(task: Task, settings: Settings) -> Condition:
    """On the last row of the phase."""
    return _fit(task, "last", Condition)


def mean_condition(task: Task, settings: Settings) -> MeanCondition:
    """On the mean of its rows."""
    return _fit(task, "mean", MeanCondition)


def _fit(task: Task, pooling: Pooling, kind: type[_Kind]) -> _Kind:
    """The first principal component of the differences between a positive and a negative example.

    CAST takes pairs. Over all pairs the second moment of their differences is delta delta^T + Sigma+ + Sigma-, delta being
    the difference of the class means. The sign is the one by which the training examples are told better.
    """
    (point,) = task.hook_points
    x = task.pooled.rows(point, task.phase, task.exclude_first, pooling)[list(task.indices)]
    positive, negative = x[task.labels == 1], x[task.labels == 0]
    delta = positive.mean(axis=0) - negative.mean(axis=0)
    within = [(own - own.mean(axis=0)) / np.sqrt(len(own)) for own in (positive, negative)]
    component = np.linalg.svd(np.concatenate([delta[None], *within]), full_matrices=False)[2][0]
    direction = torch.tensor(component, dtype=torch.float32)
    scores = kind(point, direction).similarity(torch.tensor(x)).numpy()
    return kind(point, direction, 1 if auroc(task.labels, scores) >= _CHANCE else -1)
