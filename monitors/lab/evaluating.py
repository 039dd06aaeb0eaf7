"""A monitor on labelled examples, with TF-IDF on the same texts and random directions beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monitors.base import Monitor
from monitors.lab.activations import Activations
from monitors.lab.baselines import (
    folds,
    paired_aurocs,
    random_monitors,
    random_summary,
    tfidf,
    tfidf_out_of_fold,
)
from monitors.lab.dataset import Example, dataset_digest
from monitors.lab.pooling import Pooled
from monitors.lab.probability import fit_probability
from monitors.lab.recipes import Recipe, fit
from monitors.lab.scoring import Scorer
from monitors.lab.sections.base import Phase, Statistic
from monitors.lab.sections.evaluation import AtFpr, Compared, EvaluationSection, Figures, Stratum
from monitors.lab.sections.probability import Probability
from monitors.lab.statistics import Floats, Ints, auroc_interval, log_auroc, roc_points, tpr_at

_BUDGETS = (0.01, 0.001)
_FOLDS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """What is judged: activations of labelled examples, and of those that the monitor was fitted on, if they are given."""

    tested: Activations
    phase: Phase
    trained: Activations | None = None
    recipe: Recipe | None = None  # of the monitor, to fit it anew without a data set
    statistic: Statistic = "max"
    seed: int = 0
    fitted_on: str = ""  # digest of the examples that the monitor was fitted on, if known


def evaluate(monitor: Monitor, trial: Trial) -> EvaluationSection:
    """The card's section; its hash is still open. Raises ValueError if a class is missing or the monitor fails."""
    acts = trial.tested
    labels, groups = acts.labels, acts.groups
    scores = _scores(monitor, acts, trial)
    words, fitted_on = _words(trial, labels, groups)
    random = _random_scores(monitor, trial)

    def compared(rows: NDArray[np.intp]) -> Compared:
        own = labels[rows]
        return Compared(
            num_positive=int(own.sum()),
            num_negative=int((own == 0).sum()),
            monitor=figures(own, scores[rows], groups[rows], trial.seed),
            tfidf=None if words is None else figures(own, words[rows], groups[rows], trial.seed),
            random=random_summary(paired_aurocs(own, random[rows])),
        )

    datasets = np.array([example.dataset for example in acts.examples])
    strata = {name: np.flatnonzero(datasets == name) for name in np.unique(datasets)}
    strata = {name: rows for name, rows in strata.items() if 0 < labels[rows].sum() < len(rows)}
    return EvaluationSection(
        weights_sha256="",
        data_sha256=dataset_digest(acts.examples),
        num_examples=len(labels),
        seed=trial.seed,
        phase=trial.phase,
        tfidf_fitted_on=fitted_on,
        whole=compared(np.arange(len(labels))),
        by_dataset=tuple(Stratum(name=str(n), compared=compared(r)) for n, r in strata.items())
        if len(strata) > 1
        else (),
        leave_one_dataset_out=_left_out(trial, strata),
        detection_delay_tokens=_delay(monitor, trial, labels, scores),
        probability=_probability(monitor, trial, labels, scores),
    )


def figures(labels: Ints, scores: Floats, groups: NDArray[np.str_], seed: int = 0) -> Figures:
    """All figures of one score. Raises ValueError if a class is missing."""
    found = {fpr: tpr_at(labels, scores, fpr) for fpr in _BUDGETS}
    return Figures(
        auroc=auroc_interval(labels, scores, groups, seed),
        log_auroc=log_auroc(labels, scores),
        at_fpr=tuple(AtFpr(fpr=fpr, tpr=tpr) for fpr, tpr in found.items() if tpr is not None),
        roc=roc_points(labels, scores),
    )


def _scores(monitor: Monitor, acts: Activations, trial: Trial) -> Floats:
    found = Scorer([monitor]).statistic(acts, trial.phase, trial.statistic)
    for example, score in zip(acts.examples, found[:, 0], strict=True):
        if not np.isfinite(score):
            told = (
                "its score is not finite" if np.isnan(score) else f"no token of its {trial.phase} is in scope"
            )
            raise ValueError(f"example {example.id!r}: {told}; leave it out, or mend the monitor")
    return found[:, 0]


def _words(trial: Trial, labels: Ints, groups: NDArray[np.str_]) -> tuple[Floats | None, str]:
    """TF-IDF's score of each example, and what it was fitted on. None: too few groups to leave any out."""
    examples = trial.tested.examples
    if trial.trained is not None:
        return tfidf(trial.trained.examples, trial.trained.labels, examples), "training data"
    num = min(_FOLDS, *(len(set(groups[labels == label])) for label in (0, 1)))
    if num < 2:  # noqa: PLR2004  one fold leaves nothing to fit on
        return None, "nothing: too few groups"
    return tfidf_out_of_fold(
        examples, labels, folds(labels, groups, num, trial.seed)
    ), "these examples, out of fold"


def _random_scores(monitor: Monitor, trial: Trial) -> Floats:
    """[n_examples, 2 * NUM_RANDOM]: directions at the monitor's last hook point, aggregated as the monitor is."""
    pooled = Pooled(trial.tested)
    scope = monitor.exclude_first
    drawn = random_monitors(
        pooled, monitor.hook_points[-1], trial.phase, monitor.aggregator, exclude_first=scope, seed=trial.seed
    )
    return Scorer(drawn).statistic(trial.tested, trial.phase, trial.statistic)


def _left_out(trial: Trial, strata: dict[str, NDArray[np.intp]]) -> tuple[Stratum, ...]:
    """Fit monitor and TF-IDF on every other data set (of the training data, if given), and judge them on the one left out."""
    if trial.recipe is None:
        return ()
    source = trial.trained or trial.tested
    found = []
    for name, rows in strata.items():
        is_other = np.array([example.dataset != name for example in source.examples])
        others = np.flatnonzero(is_other)
        labels = source.labels[others]
        if is_other.all() or not 0 < labels.sum() < len(labels):
            continue  # it was never learned from, or too little is left to learn from
        refitted = fit(trial.recipe, Pooled(source), others.tolist(), labels, seed=trial.seed)
        tested, truth = trial.tested, trial.tested.labels[rows]
        texts: Sequence[Example] = [source.examples[int(i)] for i in others]
        words = tfidf(texts, labels, [tested.examples[int(i)] for i in rows])
        compared = Compared(
            num_positive=int(truth.sum()),
            num_negative=int((truth == 0).sum()),
            monitor=figures(truth, _scores(refitted, tested, trial)[rows], tested.groups[rows], trial.seed),
            tfidf=figures(truth, words, tested.groups[rows], trial.seed),
            random=random_summary(paired_aurocs(truth, _random_scores(refitted, trial)[rows])),
        )
        found.append(Stratum(name=str(name), compared=compared))
    return tuple(found)


def _probability(monitor: Monitor, trial: Trial, labels: Ints, scores: Floats) -> Probability | None:
    """Of those examples that the monitor was not fitted on: its scores of the others are too good."""
    examples = trial.tested.examples
    if dataset_digest(examples) == trial.fitted_on:
        return None
    known = {e.content for e in trial.trained.examples} if trial.trained else set()
    unseen = np.flatnonzero([e.content not in known for e in examples])
    if not 0 < labels[unseen].sum() < len(unseen):
        return None
    return fit_probability(
        scores[unseen], labels[unseen], trial.tested.groups[unseen], monitor.link, trial.seed
    )


def _delay(monitor: Monitor, trial: Trial, labels: Ints, scores: Floats) -> tuple[float, ...]:
    """Quartiles, over flagged positives, of how many tokens were read when the score first exceeded the 1 % threshold."""
    threshold = monitor.calibration.threshold(trial.phase) if monitor.calibration else None
    if threshold is None:
        return ()
    flagged = np.flatnonzero((labels == 1) & (scores > threshold.value))
    scorer = Scorer([monitor])
    first = [
        int(np.argmax(scorer.running(trial.tested, int(index))[trial.phase][:, 0] > threshold.value)) + 1
        for index in flagged
    ]
    return tuple(np.percentile(first, [25, 50, 75]).tolist()) if first else ()
