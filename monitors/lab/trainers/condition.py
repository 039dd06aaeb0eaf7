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
    """Of two directions the one by which the training examples are told better, and on which side the condition is met.

    CAST takes the first principal component of the differences within contrast pairs. Over all pairs of a positive and a
    negative example their second moment is delta delta^T + Sigma+ + Sigma-, delta being the difference of the class means.
    Where examples are no pairs, Sigma may outweigh it: the other direction is delta.
    """
    (point,) = task.hook_points
    x = task.pooled.rows(point, task.phase, task.exclude_first, pooling)[list(task.indices)]
    positive, negative = x[task.labels == 1], x[task.labels == 0]
    delta = positive.mean(axis=0) - negative.mean(axis=0)
    within = [(own - own.mean(axis=0)) / np.sqrt(len(own)) for own in (positive, negative)]
    component = np.linalg.svd(np.concatenate([delta[None], *within]), full_matrices=False)[2][0]
    found: list[tuple[float, _Kind]] = []
    for vector in (component, delta):
        condition = kind(point, torch.tensor(vector, dtype=torch.float32))
        value = auroc(task.labels, condition.similarity(torch.tensor(x)).numpy())
        sign = 1 if value >= _CHANCE else -1
        found.append((abs(value - _CHANCE), kind(point, condition.direction, sign)))
    return max(found, key=lambda one: one[0])[1]
