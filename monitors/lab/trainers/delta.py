"""TaskTracker (2406.00799): a logistic regression on how far the last token has moved from the user's own request."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from monitors.delta import Delta
from monitors.lab.trainers.base import Settings, Task
from monitors.lab.trainers.linear import MAX_STEPS, standardised


def delta(task: Task, settings: Settings) -> Delta:
    """min sum BCE + penalty / 2 ||w||^2 on standardised differences x_last - x_ref, classes weighted alike."""
    parts = [task.pooled.drifts(point, task.phase, task.indices) for point in task.hook_points]
    x, mean, std = standardised(np.concatenate(parts, axis=1))
    model = LogisticRegression(C=1 / settings["penalty"], max_iter=MAX_STEPS, class_weight="balanced")
    model.fit(x, task.labels)
    shape = (len(task.hook_points), -1)
    weight, centre, scale = (torch.tensor(part.reshape(shape)) for part in (model.coef_[0], mean, std))
    return Delta.folded(task.hook_points, weight, float(model.intercept_[0]), centre, scale)
