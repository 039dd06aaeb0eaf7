"""What is read under an edit, against activations collected without one, and against planted answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from monitors.base import Link
from monitors.lab.activations import collect
from monitors.lab.causal import QUICK, Subjects, Verification
from monitors.lab.causal.downstream import Shifted, follow, later_points, moved
from monitors.lab.causal.edits import Axis, to_high
from monitors.lab.causal.effects import Paired
from monitors.lab.causal.under_edit import Reader, Readings
from monitors.lab.pooling import Pooled
from monitors.lab.recipes import Recipe
from monitors.lab.scoring import Scorer
from monitors.types import HookPoint
from tests.unit.monitors.lab.causal.toy import (
    BYSTANDER,
    CAUSE,
    MEAN,
    POINT,
    D,
    probe,
    toy_examples,
    toy_subject,
)

LATER = HookPoint(3)
AXES = (Axis(POINT, CAUSE, low=0.0, high=2.0),)


def never(num):
    pass


def reader(monitors, **changes):
    recipe = Recipe("mass_mean", (POINT,), "prompt", MEAN, exclude_first=1)
    job = Verification(probe(CAUSE), toy_subject(), Subjects(()), QUICK, recipe, None)
    return Reader(replace(job, **changes), [POINT], [POINT, LATER], monitors, never)


@pytest.mark.parametrize("statistic", ["max", "last"])
def test_without_an_edit_it_reads_what_the_lab_collects(tmp_path, statistic):
    examples = toy_examples(12)
    monitors = [replace(probe(BYSTANDER), exclude_first=1, link=Link.SIGMOID), probe(CAUSE)]
    found = reader(monitors, statistic=statistic).read(examples, None)
    acts = collect(toy_subject(), examples, [POINT, LATER], tmp_path)
    for point in (POINT, LATER):
        np.testing.assert_allclose(found.rows[point], Pooled(acts).rows(point, "prompt", 1), atol=1e-5)
    scores = Scorer(monitors).statistic(acts, "prompt", statistic)
    scores[:, 0] = np.log(scores[:, 0] / (1 - scores[:, 0]))  # probabilities are read as log-odds
    np.testing.assert_allclose(found.scores, scores, atol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_under_an_edit_it_reads_what_the_edit_left_and_what_follows_from_it(pooling):
    """The toy's blocks leave the cause alone, so that what is written stays there."""
    examples = toy_examples(12)
    natural, written = (
        reader([probe(CAUSE)], pooling=pooling).read(examples, edit) for edit in (None, to_high(AXES))
    )
    cause, bystander = CAUSE.double().numpy(), BYSTANDER.double().numpy()
    for point in (POINT, LATER):
        np.testing.assert_allclose(written.rows[point] @ cause, 2.0, atol=1e-4)
        np.testing.assert_allclose(
            written.rows[point] @ bystander, natural.rows[point] @ bystander, atol=1e-4
        )
    assert (written.scores > natural.scores).any()


def test_a_reply_that_is_missing_is_told_by_the_name_of_its_example():
    recipe = Recipe("mass_mean", (POINT,), "response", MEAN)
    with pytest.raises(ValueError, match=r"example 'toy:[01]' has no token in the response"):
        reader([], recipe=recipe).read(toy_examples(2), None)


@pytest.mark.parametrize(
    ("last", "num_layers", "num", "layers"),
    [(0, 6, 1, [5]), (0, 6, 3, [2, 3, 5]), (3, 6, 3, [4, 5]), (5, 6, 3, []), (10, 80, 3, [33, 56, 79])],
)
def test_later_layers_are_spread_to_the_last(last, num_layers, num, layers):
    found = later_points(HookPoint(last), num_layers, num)
    assert [point.layer for point in found] == layers


def readings(rows, scores=None):
    return Readings({LATER: rows}, np.zeros((len(rows), 0)) if scores is None else scores)


def planted(labels, carriers, seed):
    """Rows that carry the label along axes; and with the first axis emptied, and filled."""
    rows = np.random.default_rng(seed).normal(size=(len(labels), D))
    rows[:, carriers] += 4.0 * labels[:, None]
    removed, written = rows.copy(), rows.copy()
    removed[:, 0], written[:, 0] = 0.0, 4.0
    return readings(rows), readings(removed), readings(written)


@pytest.mark.parametrize(("carriers", "survives"), [([0], False), ([0, 1], True)])
def test_a_probe_fitted_anew_finds_a_concept_that_has_a_second_direction_and_no_other(carriers, survives):
    labels = np.arange(80) % 2
    groups = np.array([f"g{i}" for i in range(80)])
    natural, removed, _ = planted(labels, carriers, seed=0)
    test = Shifted(*planted(labels, carriers, seed=1))
    found = follow(LATER, (natural, removed), labels, test, Paired(np.zeros(80), labels, groups))
    assert found.natural_auroc > 0.97
    assert (found.refit_auroc > 0.97) == survives
    assert found.refit_auroc < 0.65 or survives
    assert found.removed.low > 0.2
    assert found.written.low > 0.2
    assert (found.removed.value > 0.8) == (not survives)  # all that the probe reads was removed, or a share


def test_how_far_a_monitor_moves_is_told_in_its_own_deviations():
    labels = np.array([0, 0, 1, 1])
    natural = np.array([[0.0, 0.0, 1.0], [1.0, 20.0, 1.0], [4.0, 10.0, 1.0], [5.0, 30.0, 1.0]])
    removed, written = natural - np.array([4.0, 5.0, 0.0]), natural + np.array([4.0, -5.0, 0.0])
    test = Shifted(*(readings(natural, scores) for scores in (natural, removed, written)))
    own = 4.0 / natural[:, 0].std()
    assert moved(test, labels) == [pytest.approx(5.0 / natural[:, 1].std() / own), None]  # one never varies


def test_nothing_is_told_of_others_if_the_own_monitor_stands_still_or_a_score_is_missing():
    labels, scores = np.array([0, 1]), np.array([[0.0, 0.0], [1.0, 1.0]])
    still = readings(scores, scores)
    assert moved(Shifted(still, still, still), labels) == [None]
    lost = readings(scores, scores + np.array([[1.0, -np.inf], [1.0, 0.0]]))
    assert moved(Shifted(still, lost, lost), labels) == [None]
    assert moved(Shifted(lost, lost, lost), labels) == [None]


def test_rows_that_are_watched_are_those_that_the_edit_left():
    seen = reader([]).read(toy_examples(3), lambda point, x, owner: torch.zeros_like(x))
    np.testing.assert_array_equal(seen.rows[POINT], 0.0)
