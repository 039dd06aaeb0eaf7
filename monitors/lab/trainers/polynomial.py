"""Truncated polynomial classifiers, degree by degree: what lower degrees have learned stays as it is (2509.26238)."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from monitors.lab.statistics import Floats
from monitors.lab.trainers.base import Settings, Task
from monitors.lab.trainers.linear import MAX_STEPS, standardised
from monitors.polynomial import MAX_DEGREE, MIN_DEGREE, Polynomial

_BATCH = 64  # rows
_SHORTER = 0.8  # than the text before, until one row is left


def polynomial(task: Task, settings: Settings) -> Polynomial:
    """On mean rows, standardised per channel: a logistic regression, then `rank` powers of each degree up to `degree`.

    An example gives the mean of all its rows, and of ever fewer of the first, down to one, weighing as one together: the
    server scores the mean so far, and powers explode on what they were not fitted on. The projections of a
    degree begin as random unit vectors and its coefficients as 0, so that it begins where the lower ones ended; AdamW on BCE,
    classes weighted alike. Raises ValueError for a degree that is not 2 to 5, and for rows that are not finite.
    """
    degree, rank = int(settings["degree"]), int(settings["rank"])
    if not MIN_DEGREE <= degree <= MAX_DEGREE or rank < 1:
        raise ValueError(f"degree is {degree} and rank {rank}; needs degree 2 to 5, rank 1 or more")
    means = [_prefix_means(task, index) for index in task.indices]
    num = [len(own) for own in means]
    x, mean, std = standardised(np.concatenate(means))
    labels = np.repeat(task.labels, num)
    of_class = np.array([0.5 / (1 - task.labels.mean()), 0.5 / task.labels.mean()])
    weights = of_class[labels] / np.repeat(num, num)
    model = LogisticRegression(C=1 / settings["penalty"], max_iter=MAX_STEPS)
    model.fit(x, labels, sample_weight=weights)
    data = _Rows(*(torch.tensor(part, dtype=torch.float32) for part in (x, labels, weights)))
    logits = data.x @ torch.tensor(model.coef_[0], dtype=torch.float32) + float(model.intercept_[0])
    generator = torch.Generator().manual_seed(task.seed)
    projected, coefficients = [model.coef_], []
    for power in range(MIN_DEGREE, degree + 1):
        start = F.normalize(torch.randn(rank, len(mean), generator=generator))
        u, scale = _fit_degree(data, logits, start, power=power, settings=settings, seed=task.seed)
        logits = logits + _powers(data.x, u, power) @ scale
        projected.append(u.double().numpy())
        coefficients.append(scale)
    own = np.concatenate(projected) / std
    offsets = -own @ mean
    offsets[0] += model.intercept_[0]
    (point,) = task.hook_points
    projections, offset = (torch.tensor(part, dtype=torch.float32) for part in (own, offsets))
    return Polynomial(point, projections, offset, torch.stack(coefficients))


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Standardised rows [n, d], with a label and a weight [n] each, float32."""

    x: Tensor
    labels: Tensor
    weights: Tensor


def _prefix_means(task: Task, index: int) -> Floats:
    """The means of all rows of an example, and of the first 4 / 5, 16 / 25, ... of them, down to one: [n, d_model]."""
    (point,) = task.hook_points
    rows = task.pooled.tokens(point, task.phase, index, task.exclude_first).double()
    if not rows.isfinite().all():
        name = task.pooled.acts.examples[index].id
        raise ValueError(f"example {name!r}: activations at {point} are not finite")
    lengths = [len(rows)]
    while lengths[-1] > 1:
        lengths.append(int(lengths[-1] * _SHORTER))
    found: Floats = torch.stack([rows[:length].mean(dim=0) for length in lengths]).numpy()
    return found


def _fit_degree(
    rows: _Rows, logits: Tensor, start: Tensor, *, power: int, settings: Settings, seed: int
) -> tuple[Tensor, Tensor]:
    """The projections [rank, d] and coefficients [rank] of a degree, on top of the logits [n] of those below."""
    weights = rows.weights / rows.weights.mean()
    typical = math.sqrt(math.prod(range(1, 2 * power, 2)))  # of a standard normal variable to that power
    u, scale = start.clone().requires_grad_(), torch.zeros(len(start), requires_grad=True)
    optimizer = torch.optim.AdamW(
        [u, scale], lr=settings["learning_rate"], weight_decay=settings["weight_decay"]
    )
    rng = np.random.default_rng((seed, power))
    for _ in range(int(settings["epochs"])):
        for batch in torch.split(torch.tensor(rng.permutation(len(rows.x))), _BATCH):
            with torch.enable_grad():
                found = logits[batch] + _powers(rows.x[batch], u, power) @ scale / typical
                loss = F.binary_cross_entropy_with_logits(found, rows.labels[batch], weight=weights[batch])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_([u, scale], 1.0)
            optimizer.step()
    return u.detach(), scale.detach() / typical


def _powers(x: Tensor, u: Tensor, power: int) -> Tensor:
    """[n, rank]."""
    found: Tensor = (x @ u.T) ** power
    return found
