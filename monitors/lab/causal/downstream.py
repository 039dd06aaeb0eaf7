"""Where an edit leads: what probes at later layers make of it, and what monitors of other concepts do."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression

from monitors.lab.causal.effects import Paired
from monitors.lab.causal.under_edit import Readings
from monitors.lab.sections.causal import Downstream
from monitors.lab.statistics import Floats, Ints, auroc
from monitors.lab.trainers.linear import MAX_STEPS, standardised
from monitors.types import HookPoint

_LEAST_MOVE = 0.1  # standard deviations; of a monitor that its own edit moves less, no multiple is told


@dataclass(frozen=True, slots=True, eq=False)
class Shifted:
    """Readings of the same examples without an edit and under the edits."""

    natural: Readings
    removed: Readings  # all at the negatives' mean
    written: Readings  # all at the positives' mean


def follow(
    point: HookPoint, select: tuple[Readings, Readings], select_labels: Ints, test: Shifted, paired: Paired
) -> Downstream:
    """Fit a probe on what a later layer holds of `select`, natural and with the direction removed; measure both on `test`.

    `paired` says how the test examples are labelled and grouped.
    """
    natural, removed = select
    probe = _Logistic(natural.rows[point], select_labels)
    scores, lowered, raised = (probe(its.rows[point]) for its in (test.natural, test.removed, test.written))
    along = Paired(scores, paired.labels, paired.groups, paired.seed)
    anew = _Logistic(removed.rows[point], select_labels)
    return Downstream(
        hook_point=str(point),
        natural_auroc=auroc(paired.labels, scores),
        removed=along.effect(scores - lowered, paired.labels == 1),
        written=along.effect(raised - scores, paired.labels == 0),
        refit_auroc=auroc(paired.labels, anew(test.removed.rows[point])),
    )


def moved(test: Shifted, labels: Ints) -> list[float | None]:
    """How far the edits move each monitor but the first, as a multiple of how far they move the first.

    A monitor's move is the mean of |mean change over positives, with the direction removed| and |mean change over negatives,
    with it written|, in standard deviations of its scores over all.
    """
    own, *others = (_move(test, labels, number) for number in range(test.natural.scores.shape[1]))
    if own is None or own < _LEAST_MOVE:
        return [None] * len(others)
    return [None if other is None else other / own for other in others]


def _move(test: Shifted, labels: Ints, number: int) -> float | None:
    """None for scores that are not all finite, or all the same."""
    natural, removed, written = (its.scores[:, number] for its in (test.natural, test.removed, test.written))
    if not all(np.isfinite(its).all() for its in (natural, removed, written)):
        return None
    if (spread := float(natural.std())) == 0:
        return None
    lowered = (removed - natural)[labels == 1].mean()
    raised = (written - natural)[labels == 0].mean()
    return float((abs(lowered) + abs(raised)) / 2 / spread)


class _Logistic:
    """The trainers' logistic probe, on rows: a penalty of 1 on standardised ones, classes weighted alike."""

    def __init__(self, rows: Floats, labels: Ints) -> None:
        x, self._mean, self._std = standardised(rows)
        self._model = LogisticRegression(max_iter=MAX_STEPS, class_weight="balanced").fit(x, labels)

    def __call__(self, rows: Floats) -> Floats:
        """Log-odds, [n]."""
        found: Floats = self._model.decision_function((rows - self._mean) / self._std)
        return found


def later_points(last: HookPoint, num_layers: int, num: int) -> Sequence[HookPoint]:
    """The outputs of at most `num` blocks after a hook point, evenly spaced; the model's last block is the last of them."""
    layers = np.linspace(last.layer, num_layers - 1, num + 1)[1:].round().astype(int)
    return [HookPoint(int(layer)) for layer in dict.fromkeys(layers.tolist()) if layer > last.layer]
