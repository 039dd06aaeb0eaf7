"""Monitors of SAE features: which are chosen, and how they are weighed."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from monitors.base import Link, Scale
from monitors.lab.fitting import Search
from monitors.lab.pooling import Pooled
from monitors.lab.recipes import Recipe, fit
from monitors.lab.sae.source import SaeSource
from monitors.lab.scoring import Scorer
from monitors.lab.statistics import auroc
from monitors.lab.trainers import KIND_SETS, TRAINERS
from monitors.lab.trainers.sae_features import choose
from monitors.sae.base import Among, SaeError, Selection, SparseAutoencoder
from monitors.sae_features import Combine
from tests.unit.monitors.lab.synthetic import PLANTED, POINTS, D, direction, planted

NUM, TELLING = 60, 41  # the feature that reads what was planted
KINDS = ["sae_features", "sae_features_max"]


def toy(selection: Selection | None = None) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(0)
    W_enc = torch.nn.functional.normalize(torch.randn(D, NUM, generator=generator), dim=0)
    along = torch.tensor(direction(), dtype=torch.float32)
    W_enc -= along[:, None] * (along @ W_enc)
    W_enc[:, TELLING] = along
    return SparseAutoencoder(
        hook_point=PLANTED,
        W_enc=W_enc,
        W_dec=W_enc.T.contiguous(),
        b_enc=torch.full((NUM,), -0.5),
        b_subtracted=None,
        scale=Scale.NONE,
        rectifiers=None,
        selection=selection,
    )


def source(selection: Selection | None = None, *, whole: bool = False) -> SaeSource:
    return SaeSource(toy(selection), "0" * 64, whole)


def recipe(trainer: str, sae: SaeSource | None = None, **settings: float) -> Recipe:
    aggregator = TRAINERS[trainer].run_with[0]
    return Recipe(trainer, (PLANTED,), "prompt", aggregator, settings=settings, sae=sae or source())


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Pooled:
    return Pooled(planted(tmp_path_factory.mktemp("acts"), strength=3.0))


@pytest.mark.parametrize("trainer", KINDS)
def test_the_telling_feature_comes_first_and_other_examples_are_told(pooled: Pooled, tmp_path, trainer: str):
    labels = pooled.acts.labels
    monitor = fit(recipe(trainer, num_features=3), pooled, range(len(labels)), labels)
    assert monitor.transform.features[0] == TELLING
    assert len(monitor.transform.features) == 3
    assert monitor.transform.weight[0] > 0
    assert len(monitor.transform.encoder) == 3  # the others are not kept
    fresh = planted(tmp_path, strength=3.0, seed=1)
    assert auroc(fresh.labels, Scorer([monitor]).lasts(fresh, "prompt")[:, 0]) > 0.95


@pytest.mark.parametrize("trainer", KINDS)
def test_shuffled_labels_teach_nothing(pooled: Pooled, tmp_path, trainer: str):
    labels = np.random.default_rng(4).permutation(pooled.acts.labels)
    monitor = fit(recipe(trainer), pooled, range(len(labels)), labels)
    fresh = planted(tmp_path, seed=2, strength=0.0)
    assert abs(auroc(fresh.labels, Scorer([monitor]).lasts(fresh, "prompt")[:, 0]) - 0.5) < 0.15


def test_the_sum_is_the_logistic_regression_on_the_mean_of_its_features(pooled: Pooled):
    labels = pooled.acts.labels
    monitor = fit(recipe("sae_features", num_features=4), pooled, range(len(labels)), labels)
    transform, sae = monitor.transform, toy()
    for index in range(5):
        f = sae.encode(pooled.tokens(PLANTED, "prompt", index))[:, list(transform.features)].mean(dim=0)
        expected = torch.sigmoid(f @ transform.weight + transform.bias.sum())
        found = Scorer([monitor]).running(pooled.acts, index)["prompt"][-1, 0]
        assert found == pytest.approx(float(expected), rel=1e-4)


def test_the_largest_distance_is_from_the_quantile_of_negatives_in_the_features_own_deviations(
    pooled: Pooled,
):
    labels = pooled.acts.labels
    monitor = fit(
        recipe("sae_features_max", num_features=2, quantile=0.9), pooled, range(len(labels)), labels
    )
    assert (monitor.transform.combine, monitor.link) == (Combine.MAX, Link.IDENTITY)
    peaks = source().peaks(pooled, "prompt", 0)[:, TELLING].double().numpy()
    positive, negative = peaks[labels == 1], peaks[labels == 0]
    s = np.sqrt((positive.var() + negative.var()) / 2)
    tau = np.quantile(negative, 0.9)
    weight, bias = float(monitor.transform.weight[0]), float(monitor.transform.bias[0])
    assert (weight, bias) == (pytest.approx(1 / s, rel=1e-5), pytest.approx(-tau / s, rel=1e-5))


def test_features_are_chosen_on_the_training_examples_alone(pooled: Pooled):
    labels, half = pooled.acts.labels, range(100)
    chosen = fit(recipe("sae_features"), pooled, half, labels[:100]).transform
    spoiled = labels.copy()
    spoiled[100:] = 1 - spoiled[100:]
    again = fit(recipe("sae_features"), pooled, half, spoiled[:100]).transform
    peaks = source().peaks(pooled, "prompt", 0)[:100].numpy()
    assert chosen.features == again.features
    assert chosen.features == tuple(choose(peaks, labels[:100], 16))


def test_choosing_goes_by_auroc_then_by_each_features_own_deviation():
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    peaks = np.abs(rng.normal(size=(400, 30)))
    peaks[:, 3] += 2.0 * labels
    peaks[:, 7] = 1e-4 * (
        peaks[:, 7] + 3.0 * labels
    )  # tiny, and the best: a deviation of all features would drown it
    peaks[:, 9] += 1.5 * (1 - labels)  # tells the absence
    peaks[:, 11] *= 1e4  # huge, and says nothing
    expected = np.argsort([-abs(roc_auc_score(labels, column) - 0.5) for column in peaks.T])[:3]
    assert choose(peaks, labels, 3) == expected.tolist() == [7, 3, 9]
    assert 9 not in choose(peaks, labels, 8, only_presence=True)


def test_where_no_feature_is_ever_active_that_is_told():
    with pytest.raises(ValueError, match="no feature of the SAE tells the classes apart"):
        choose(np.zeros((10, 4)), np.arange(10) % 2, 2)


def test_a_top_k_sae_is_read_whole_where_that_is_asked_for(pooled: Pooled):
    labels, top = pooled.acts.labels, Selection(Among.ALL, 5)
    monitor = fit(recipe("sae_features", source(top, whole=True)), pooled, range(len(labels)), labels)
    assert monitor.transform.features[0] == TELLING
    assert len(monitor.transform.encoder) == NUM
    with pytest.raises(SaeError, match="ask for the whole encoder"):
        fit(recipe("sae_features", source(top)), pooled, range(len(labels)), labels)


def test_a_search_reads_where_the_sae_does_and_needs_one():
    search = Search(("sae_features", "logistic"), POINTS[:1], sae=source())
    points = {one.trainer: one.hook_points for one in search.recipes("prompt")}
    assert points == {"sae_features": (PLANTED,), "logistic": POINTS[:1]}
    with pytest.raises(
        ValueError, match="kind 'sae_features' chooses features of an SAE: give its folder with --sae"
    ):
        Search(("sae_features",), POINTS).recipes("prompt")
    assert not set(KINDS) & set(KIND_SETS["all"])


def test_a_recipe_without_its_sae_can_not_be_fitted(pooled: Pooled):
    part = recipe("sae_features").to_part()
    assert part.sae_sha256 == "0" * 64
    labels = pooled.acts.labels
    with pytest.raises(ValueError, match="give its folder with --sae"):
        fit(Recipe.from_part(part), pooled, range(len(labels)), labels)


def test_rows_that_are_not_finite_are_named(tmp_path):
    bad = Pooled(planted(tmp_path, num=4, scale=np.inf))
    with pytest.raises(ValueError, match=r"'row:0': activations at blocks.1.hook_resid_post are not finite"):
        source().peaks(bad, "prompt", 0)
