"""Which layer, kind and aggregator: every candidate is cross-validated over groups by what the server would compute."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from monitors.base import Monitor
from monitors.lab.finished import Finished
from monitors.lab.pooling import Pooled
from monitors.lab.recipes import Recipe, fit
from monitors.lab.scoring import Scorer
from monitors.lab.sections.base import Statistic
from monitors.lab.sections.fit import Candidate
from monitors.lab.statistics import Floats, Ints, auroc_interval, tpr_at

_MONITORS_PER_PASS = (
    64  # over the activations: bounds the memory of a shard's scores, and what an interruption loses
)

_VALUES_PER_PASS = 4096  # of a token: some kinds have as many as the model's rows are wide


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A recipe with the out-of-fold score of each example."""

    recipe: Recipe
    scores: Floats  # [n_examples]


def cross_validate(
    recipes: Sequence[Recipe],
    pooled: Pooled,
    labels: Ints,
    fold: Ints,
    *,
    statistic: Statistic = "max",
    seed: int = 0,
    resume: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Judged]:
    """Fit each recipe once per fold on the others, and score each example by the monitor that never saw it.

    The scores are the run-time statistic: the monitor's own aggregator, streamed over the request's tokens.
    With `resume`, finished recipes are kept beside the activations, and not fitted again.
    """
    names = np.unique(fold)
    total = len(recipes) * len(names)
    per_pass = max(1, _MONITORS_PER_PASS // len(names))
    finished = Finished(pooled.acts.folder, labels, fold, statistic, seed) if resume else None
    found = {} if finished is None else finished.read(recipes)
    missing = [number for number in range(len(recipes)) if number not in found]
    progress(len(found) * len(names), total)
    for start in range(0, len(missing), per_pass):
        numbers = missing[start : start + per_pass]
        part = [recipes[number] for number in numbers]
        done = len(found) * len(names)
        monitors = []
        for recipe in part:
            for one in names:
                indices = np.flatnonzero(fold != one)
                monitors.append(fit(recipe, pooled, indices.tolist(), labels[indices], seed=seed))
                progress(done + len(monitors), total)
        by_phase = {recipe.phase for recipe in part}
        scorers = [Scorer(few) for few in _few_values(monitors)]
        scores = {
            phase: np.hstack([scorer.statistic(pooled.acts, phase, statistic) for scorer in scorers])
            for phase in by_phase
        }
        for place, (number, recipe) in enumerate(zip(numbers, part, strict=True)):
            columns = place * len(names) + np.searchsorted(names, fold)
            found[number] = scores[recipe.phase][np.arange(len(labels)), columns]
            if finished is not None:
                finished.write(recipe, found[number])
    return [Judged(recipe, found[number]) for number, recipe in enumerate(recipes)]


def _few_values(monitors: Sequence[Monitor]) -> Iterator[list[Monitor]]:
    """In order, with no more than `_VALUES_PER_PASS` together, unless one alone has more."""
    few: list[Monitor] = []
    num = 0
    for monitor in monitors:
        own = monitor.transform.num_values
        if few and num + own > _VALUES_PER_PASS:
            yield few
            few, num = [], 0
        few.append(monitor)
        num += own
    yield few


def candidate(
    judged: Judged, labels: Ints, groups: "np.ndarray[tuple[int], np.dtype[np.str_]]", seed: int
) -> Candidate:
    """The figures of a judged recipe, as a card holds them."""
    at_1pct = tpr_at(labels, judged.scores, 0.01)
    return Candidate(
        recipe=judged.recipe.to_part(),
        auroc=auroc_interval(labels, judged.scores, groups, seed),
        tpr_at_1pct=at_1pct.value if at_1pct else None,
    )


def best(candidates: Sequence[Candidate]) -> int:
    """The index of the highest AUROC; of equal ones the highest TPR at 1 % FPR, then the first."""
    return max(
        range(len(candidates)),
        key=lambda i: (round(candidates[i].auroc.value, 6), candidates[i].tpr_at_1pct or 0.0, -i),
    )
