"""Trainers of kinds that are no line: each finds what a line can't, and nothing where there is nothing."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf_shrinkage

from monitors.aggregate import AggregatorSpec
from monitors.bank import Bank
from monitors.base import Link, Monitor
from monitors.lab import scoring, sweep
from monitors.lab.activations import Activations
from monitors.lab.baselines import folds
from monitors.lab.pooling import Pooled
from monitors.lab.recipes import Recipe, fit
from monitors.lab.scoring import Scorer
from monitors.lab.statistics import auroc
from monitors.lab.sweep import cross_validate
from tests.unit.monitors.lab.synthetic import PLANTED, Shift, anywhere, direction, exclusive_or, made

MEAN = AggregatorSpec("mean")
QUICK = {"polynomial": {"degree": 3.0, "rank": 16.0}}


def fitted(trainer: str, acts: Activations, seed: int = 0, labels=None, **settings: float) -> Monitor:
    labels = acts.labels if labels is None else labels
    aggregator = AggregatorSpec("last") if trainer == "condition" else MEAN
    recipe = Recipe(trainer, (PLANTED,), "prompt", aggregator, settings=settings)
    return fit(recipe, Pooled(acts), range(len(labels)), labels, seed=seed)


def on_fresh(monitor: Monitor, shift: Shift, folder: Path) -> float:
    fresh = made(folder, shift, seed=1)
    return auroc(fresh.labels, Scorer([monitor]).lasts(fresh, "prompt")[:, 0])


@pytest.fixture(scope="module")
def acts_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Shift], Activations]:
    return lambda shift: made(tmp_path_factory.mktemp("acts"), shift, num=400)


@pytest.mark.parametrize("trainer", ["mlp", "polynomial"])
def test_tells_what_no_line_tells(tmp_path, acts_of, trainer: str):
    acts = acts_of(exclusive_or)
    assert abs(on_fresh(fitted("logistic", acts), exclusive_or, tmp_path) - 0.5) < 0.2
    assert on_fresh(fitted(trainer, acts), exclusive_or, tmp_path) > 0.95


def test_a_polynomial_does_not_explode_on_the_first_tokens_whose_mean_is_far_from_that_of_all(tmp_path):
    acts = made(tmp_path / "a", exclusive_or, num=400, num_tokens=(10, 20))
    monitor = replace(fitted("polynomial", acts), link=Link.IDENTITY)
    fresh = made(tmp_path / "b", exclusive_or, seed=1, num_tokens=(10, 20))
    running = [Scorer([monitor]).running(fresh, i)["prompt"][:, 0] for i in range(40)]
    first, last = (np.abs([own[place] for own in running]).mean() for place in (0, -1))
    assert first < 5 * last  # fitted on the mean of all rows alone: a hundred times
    assert auroc(fresh.labels, Scorer([monitor]).maxima(fresh, "prompt")[:, 0]) > 0.9


def test_novelty_tells_what_lies_away_from_benign_rows_in_any_direction(tmp_path, acts_of):
    acts = acts_of(anywhere)
    assert abs(on_fresh(fitted("logistic", acts), anywhere, tmp_path) - 0.5) < 0.2
    assert on_fresh(fitted("novelty", acts, rank=6), anywhere, tmp_path) > 0.95


def test_novelty_is_about_1_for_benign_rows_and_looks_at_no_others(acts_of):
    acts = acts_of(anywhere)
    monitor = fitted("novelty", acts)
    benign = Scorer([monitor]).lasts(acts, "prompt")[acts.labels == 0, 0]
    assert 0.9 < benign.mean() < 1.1
    spoiled = made(acts.folder / "spoiled", lambda rng, label: 10 * anywhere(rng, label), num=400)
    of_spoiled = fitted("novelty", spoiled).transform.tensors
    assert all(tensor.equal(of_spoiled[name]) for name, tensor in monitor.transform.tensors.items())


def test_novelty_keeps_the_largest_variances_and_the_mean_of_the_others(acts_of):
    acts = acts_of(anywhere)
    found = fitted("novelty", acts, rank=5).transform
    pooled = Pooled(acts)
    rows = [pooled.tokens(PLANTED, "prompt", int(i)) for i in np.flatnonzero(acts.labels == 0)]
    y = ((torch.cat(rows) - found.mean) / found.std).double()
    covariance = y.T @ y / len(y)
    values = torch.linalg.eigvalsh(covariance).flip(0)
    a = ledoit_wolf_shrinkage(y.numpy(), assume_centered=True)
    torch.testing.assert_close(
        found.variance.double(), (1 - a) * values[:5] + a * values.mean(), rtol=1e-4, atol=0
    )
    left = (1 - a) * values[5:].mean() + a * values.mean()
    torch.testing.assert_close(found.residual_variance.double()[0], left, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.basis @ found.basis.T, torch.eye(5), rtol=1e-4, atol=1e-4)


def test_novelty_of_fewer_rows_than_channels_is_shrunk_and_finite(tmp_path):
    acts = made(tmp_path / "few", anywhere, num=4)
    transform = fitted("novelty", acts, rank=16).transform
    assert (transform.variance > 0.01).all()
    assert np.isfinite(Scorer([fitted("novelty", acts)]).lasts(acts, "prompt")).all()


def along(rng: np.random.Generator, label: int) -> np.ndarray:
    return 4.0 * label * direction()


def towards_nothing(rng: np.random.Generator, label: int) -> np.ndarray:
    """Negative examples lie along the direction, so that the condition is met where the similarity is low."""
    return along(rng, 1 - label)


def across(rng: np.random.Generator, label: int) -> np.ndarray:
    """Examples differ more along another direction, which has nothing to do with their label."""
    other = np.eye(len(direction()))[5] - direction()[5] * direction()
    return along(rng, label) + 5.0 * rng.normal() * other


@pytest.mark.parametrize("trainer", ["condition", "condition_mean"])
def test_a_condition_is_not_taken_in_by_what_varies_most(tmp_path, acts_of, trainer: str):
    monitor = fitted(trainer, acts_of(across))
    assert abs(monitor.transform.direction.numpy() @ direction()) > 0.9 * monitor.transform.direction.norm()
    assert on_fresh(monitor, across, tmp_path) > 0.8


@pytest.mark.parametrize("trainer", ["condition", "condition_mean"])
@pytest.mark.parametrize(("shift", "sign"), [(along, 1), (towards_nothing, -1)])
def test_a_condition_finds_its_direction_and_the_side_on_which_it_is_met(
    tmp_path, acts_of, trainer: str, shift: Shift, sign: int
):
    monitor = fitted(trainer, acts_of(shift))
    found = monitor.transform.direction / monitor.transform.direction.norm()
    assert abs(found.numpy() @ direction()) > 0.95
    assert monitor.transform.sign == sign
    assert on_fresh(monitor, shift, tmp_path) > 0.95


@pytest.mark.parametrize("trainer", ["mlp", "polynomial", "novelty"])
def test_shuffled_labels_teach_nothing(tmp_path, acts_of, trainer: str):
    acts = acts_of(exclusive_or)
    labels = np.random.default_rng(5).permutation(acts.labels)
    assert (
        abs(
            on_fresh(fitted(trainer, acts, labels=labels, **QUICK.get(trainer, {})), exclusive_or, tmp_path)
            - 0.5
        )
        < 0.2
    )


@pytest.mark.parametrize("trainer", ["mlp", "polynomial"])
def test_the_same_seed_gives_the_same_monitor(acts_of, trainer: str):
    acts = acts_of(exclusive_or)
    first, again = (fitted(trainer, acts, **QUICK.get(trainer, {})).transform.tensors for _ in range(2))
    assert all(tensor.equal(again[name]) for name, tensor in first.items())


@pytest.mark.parametrize(("layers", "width"), [(1, 7), (2, 100)])
def test_an_mlp_is_as_deep_and_wide_as_asked(acts_of, layers: int, width: int):
    net = fitted("mlp", acts_of(exclusive_or), layers=layers, width=width, epochs=1).transform
    assert [len(bias) for bias in net.front.biases] == [width] * layers


@pytest.mark.parametrize(("degree", "rank"), [(2, 1), (3, 8)])
def test_a_polynomial_has_the_degree_and_rank_that_are_asked_for(acts_of, degree: int, rank: int):
    found = fitted("polynomial", acts_of(exclusive_or), degree=degree, rank=rank, epochs=1).transform
    assert (found.degree, found.coefficients.shape) == (degree, (degree - 1, rank))


@pytest.mark.parametrize("wrong", [{"degree": 1}, {"degree": 6}, {"rank": 0}])
def test_a_degree_or_rank_that_there_is_none_of_is_refused(acts_of, wrong):
    with pytest.raises(ValueError, match="needs degree 2 to 5, rank 1 or more"):
        fitted("polynomial", acts_of(exclusive_or), **wrong)


def test_lower_degrees_stay_as_they_are_when_a_higher_one_is_fitted(acts_of):
    acts = acts_of(exclusive_or)
    low, high = (fitted("polynomial", acts, degree=degree, rank=4).transform for degree in (2, 4))
    num = low.num_values
    torch.testing.assert_close(high.projections[:num], low.projections, rtol=0, atol=0)
    torch.testing.assert_close(high.coefficients[:1], low.coefficients, rtol=0, atol=0)


@pytest.mark.parametrize("trainer", ["mlp", "polynomial"])
def test_a_massive_channel_drowns_nothing(tmp_path, trainer: str):
    monitor = fitted(trainer, made(tmp_path / "a", exclusive_or, scale=1e4, num=400))
    fresh = made(tmp_path / "b", exclusive_or, scale=1e4, seed=1)
    assert auroc(fresh.labels, Scorer([monitor]).lasts(fresh, "prompt")[:, 0]) > 0.95


def test_kinds_of_many_values_are_scored_a_few_at_a_time_to_the_same_scores(acts_of, monkeypatch):
    acts = acts_of(exclusive_or)
    recipes = [Recipe(kind, (PLANTED,), "prompt", MEAN) for kind in ("condition_mean", "logistic", "lda")]
    fold = folds(acts.labels, acts.groups, 3, 0)
    at_once = cross_validate(recipes, Pooled(acts), acts.labels, fold)
    widths: list[int] = []
    begin = Bank.begin

    def counted(bank: Bank, num_rows: int) -> torch.Tensor:
        widths.append(bank.num_columns * num_rows)
        return begin(bank, num_rows)

    monkeypatch.setattr(sweep, "_VALUES_PER_PASS", 20)
    monkeypatch.setattr(scoring, "_MAX_VALUES", 1000)
    monkeypatch.setattr(Bank, "begin", counted)
    in_parts = cross_validate(recipes, Pooled(acts), acts.labels, fold)
    assert max(widths) <= 1000
    for one, other in zip(at_once, in_parts, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5, atol=1e-7)
