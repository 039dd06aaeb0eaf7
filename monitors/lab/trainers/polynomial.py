"""Truncated polynomial classifiers, degree by degree: what lower degrees have learned stays as it is (2509.26238)."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from monitors.lab.trainers.base import Settings, Task
from monitors.lab.trainers.linear import MAX_STEPS, standardised_pooled
from monitors.polynomial import MAX_DEGREE, MIN_DEGREE, Polynomial

_BATCH = 64  # examples


def polynomial(task: Task, settings: Settings) -> Polynomial:
    """On the mean row, standardised per channel: a logistic regression, then `rank` powers of each degree up to `degree`.

    The projections of a degree begin as random unit vectors and its coefficients as 0, so that it begins where the lower ones
    ended; AdamW on BCE, classes weighted alike. Raises ValueError for a degree that is not 2 to 5.
    """
    degree, rank = int(settings["degree"]), int(settings["rank"])
    if not MIN_DEGREE <= degree <= MAX_DEGREE or rank < 1:
        raise ValueError(f"degree is {degree} and rank {rank}; needs degree 2 to 5, rank 1 or more")
    pooled, mean, std = standardised_pooled(task)
    model = LogisticRegression(C=1 / settings["penalty"], max_iter=MAX_STEPS, class_weight="balanced")
    model.fit(pooled, task.labels)
    x, labels = torch.tensor(pooled, dtype=torch.float32), torch.tensor(task.labels, dtype=torch.float32)
    logits = x @ torch.tensor(model.coef_[0], dtype=torch.float32) + float(model.intercept_[0])
    generator = torch.Generator().manual_seed(task.seed)
    weights, coefficients = [model.coef_], []
    for power in range(MIN_DEGREE, degree + 1):
        start = F.normalize(torch.randn(rank, x.shape[1], generator=generator))
        u, scale = _fit_degree(x, labels, logits, start, power=power, settings=settings, seed=task.seed)
        logits = logits + _powers(x, u, power) @ scale
        weights.append(u.double().numpy())
        coefficients.append(scale)
    own = np.concatenate(weights) / std
    offsets = -own @ mean
    offsets[0] += model.intercept_[0]
    (point,) = task.hook_points
    projections, offset = (torch.tensor(part, dtype=torch.float32) for part in (own, offsets))
    return Polynomial(point, projections, offset, torch.stack(coefficients))


def _fit_degree(
    x: Tensor, labels: Tensor, logits: Tensor, start: Tensor, *, power: int, settings: Settings, seed: int
) -> tuple[Tensor, Tensor]:
    """The projections [rank, d] and coefficients [rank] of a degree, on top of the logits [n] of those below."""
    balance = torch.where(labels == 1, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
    typical = math.sqrt(math.prod(range(1, 2 * power, 2)))  # of a standard normal variable to that power
    u, scale = start.clone().requires_grad_(), torch.zeros(len(start), requires_grad=True)
    optimizer = torch.optim.AdamW(
        [u, scale], lr=settings["learning_rate"], weight_decay=settings["weight_decay"]
    )
    rng = np.random.default_rng((seed, power))
    for _ in range(int(settings["epochs"])):
        for batch in torch.split(torch.tensor(rng.permutation(len(x))), _BATCH):
            with torch.enable_grad():
                found = logits[batch] + _powers(x[batch], u, power) @ scale / typical
                loss = F.binary_cross_entropy_with_logits(found, labels[batch], weight=balance[batch])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_([u, scale], 1.0)
            optimizer.step()
    return u.detach(), scale.detach() / typical


def _powers(x: Tensor, u: Tensor, power: int) -> Tensor:
    """[n, rank]."""
    found: Tensor = (x @ u.T) ** power
    return found
