"""Fitting: trainers find what was planted and nothing else; folds, baselines and the sweep are honest."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence

from monitors.aggregate import AggregatorSpec
from monitors.base import Link
from monitors.lab import sweep
from monitors.lab.baselines import folds, random_figures, random_monitors, tfidf_out_of_fold
from monitors.lab.causal.directions import directions
from monitors.lab.dataset import Example
from monitors.lab.finished import Finished
from monitors.lab.fitting import Search, doubts, is_saturated, num_repeated
from monitors.lab.pooling import Pooled
from monitors.lab.recipes import Recipe, fit
from monitors.lab.scoring import Scorer
from monitors.lab.sections.base import Interval, RandomDirections
from monitors.lab.sections.fit import AggregatorPart, Candidate, FitSection, LayerBaseline
from monitors.lab.statistics import auroc
from monitors.lab.sweep import best, candidate, cross_validate
from monitors.lab.trainers import KIND_SETS, TRAINERS
from monitors.lab.trainers.windows import window_loss, window_means
from tests.unit.monitors.lab.synthetic import PLANTED, POINTS, direction, planted

MEAN = AggregatorSpec("mean")


def recipe(trainer: str, **rest: object) -> Recipe:
    points = POINTS if TRAINERS[trainer].all_layers else (PLANTED,)
    quick = {"epochs": 8.0} if "epochs" in TRAINERS[trainer].settings else {}
    return Recipe(trainer, points, "prompt", run_with(trainer), settings=quick, **rest)


def run_with(trainer: str) -> AggregatorSpec:
    """The mean, where the kind allows it."""
    one = TRAINERS[trainer]
    return MEAN if MEAN.kind in one.aggregators else one.run_with[0]


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Pooled:
    return Pooled(planted(tmp_path_factory.mktemp("acts")))


WEAK = {"condition", "novelty"}  # here: the last token says little, and novelty looks at benign rows only


WITHOUT_SAE = KIND_SETS["all"]


@pytest.mark.parametrize("trainer", [name for name in WITHOUT_SAE if name not in WEAK])
def test_every_trainer_finds_the_planted_direction(pooled: Pooled, trainer: str):
    labels = pooled.acts.labels
    monitor = fit(recipe(trainer), pooled, range(len(labels)), labels)
    x = torch.tensor(pooled.rows(PLANTED, "prompt")[labels == 1])
    found = directions(monitor, dict.fromkeys(monitor.hook_points, x))[PLANTED].numpy()
    assert found @ direction() > 0.85
    fresh = planted(pooled.acts.folder / trainer, seed=1)
    assert auroc(fresh.labels, Scorer([monitor]).lasts(fresh, "prompt")[:, 0]) > 0.95


@pytest.mark.parametrize("trainer", WITHOUT_SAE)
def test_no_trainer_finds_anything_in_shuffled_labels(pooled: Pooled, trainer: str):
    labels = np.random.default_rng(3).permutation(pooled.acts.labels)
    monitor = fit(recipe(trainer), pooled, range(len(labels)), labels)
    fresh = planted(pooled.acts.folder / f"{trainer}-sham", seed=2, strength=0.0)
    assert abs(auroc(fresh.labels, Scorer([monitor]).lasts(fresh, "prompt")[:, 0]) - 0.5) < 0.15


@pytest.mark.parametrize("trainer", ["logistic", "mass_mean", "lda", "sliding_window"])
def test_a_massive_channel_does_not_drown_the_others(tmp_path, trainer: str):
    pooled = Pooled(planted(tmp_path / "a", scale=1e4))
    labels = pooled.acts.labels
    monitor = fit(recipe(trainer), pooled, range(len(labels)), labels)
    fresh = planted(tmp_path / "b", seed=1, scale=1e4)
    assert auroc(fresh.labels, Scorer([monitor]).lasts(fresh, "prompt")[:, 0]) > 0.9


@pytest.mark.parametrize("trainer", [name for name, one in TRAINERS.items() if "patience" in one.settings])
def test_early_stopping_ends_before_the_noise_is_learned_by_heart(tmp_path, trainer: str):
    pooled = Pooled(planted(tmp_path, num=80, strength=0.0))
    labels = pooled.acts.labels
    points = POINTS if TRAINERS[trainer].all_layers else (PLANTED,)
    spreads = []
    fast = 5 * TRAINERS[trainer].settings["learning_rate"]
    for patience in (0, 2):
        settings = {"epochs": 60.0, "learning_rate": fast, "patience": float(patience)}
        one = Recipe(trainer, points, "prompt", run_with(trainer), settings=settings)
        monitor = fit(one, pooled, range(len(labels)), labels)
        logits = Scorer([replace(monitor, link=Link.IDENTITY)]).lasts(pooled.acts, "prompt")
        spreads.append(logits.std())
    assert spreads[1] < 0.5 * spreads[0]


def test_the_softmax_probe_is_trained_through_what_the_server_runs(pooled: Pooled):
    one = recipe("softmax")
    assert one.to_part().trained_with == AggregatorPart(kind="softmax", temperature=5.0)
    labels = pooled.acts.labels
    same = Recipe("softmax", (PLANTED,), "prompt", AggregatorSpec("softmax", temperature=5.0))
    assert fit(one, pooled, range(len(labels)), labels).trained_with == same.aggregator
    assert fit(same, pooled, range(len(labels)), labels).trained_with is None


def test_a_probe_of_pooled_rows_scores_a_request_as_it_did_in_training(pooled: Pooled):
    labels = pooled.acts.labels
    monitor = fit(recipe("logistic"), pooled, range(len(labels)), labels)
    column = monitor.transform.columns[0]
    x = torch.tensor(pooled.rows(PLANTED, "prompt"), dtype=torch.float32)
    logits = column.evaluate(x).double()
    np.testing.assert_allclose(
        Scorer([monitor]).lasts(pooled.acts, "prompt")[:, 0], torch.sigmoid(logits), rtol=1e-4
    )


def plain_window_means(z: list[float], window: int) -> list[float]:
    if len(z) < window:
        return [sum(z) / len(z)]
    return [sum(z[t - window + 1 : t + 1]) / window for t in range(window - 1, len(z))]


texts = st.lists(
    st.tuples(st.lists(st.floats(-6, 6), min_size=1, max_size=30), st.integers(0, 1)), min_size=1, max_size=5
)


def padded(rows: list[tuple[list[float], int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    z = pad_sequence([torch.tensor(own, dtype=torch.float64) for own, _ in rows], batch_first=True)
    lengths = torch.tensor([len(own) for own, _ in rows])
    return z, lengths, torch.tensor([float(label) for _, label in rows], dtype=torch.float64)


@given(texts, st.integers(1, 24), st.sampled_from([0.5, 1.0, 4.0]))
@settings(deadline=None)
def test_the_window_loss_of_each_text_in_a_batch_is_its_definition(rows, window: int, temperature: float):
    found = window_loss(*padded(rows), window, temperature)
    for (z, label), own in zip(rows, found.tolist(), strict=True):
        means = plain_window_means(z, window)
        weights = np.exp(np.array(means) / temperature)
        weights /= weights.sum()
        bce = [-np.log(1 / (1 + np.exp(-m if label else m))) for m in means]
        assert own == pytest.approx(float(weights @ bce), rel=1e-9, abs=1e-12)


@given(texts, st.integers(1, 24))
@settings(deadline=None)
def test_windows_lie_within_their_text_whatever_stands_beside_it(rows, window: int):
    z, lengths, _ = padded(rows)
    means, is_window = window_means(z, lengths, window)
    for (own, _), found, inside in zip(rows, means, is_window, strict=True):
        np.testing.assert_allclose(found[inside].numpy(), plain_window_means(own, window), atol=1e-12)


def test_the_weights_of_the_window_loss_are_not_differentiated():
    z = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(window_loss(z, torch.tensor([3]), torch.zeros(1), 1, 1.0).sum(), z)
    plain = torch.softmax(z.detach(), dim=1) * torch.sigmoid(z.detach())
    torch.testing.assert_close(gradient, plain)


@given(
    st.lists(st.tuples(st.integers(0, 14), st.integers(0, 1)), min_size=30, max_size=90), st.integers(0, 3)
)
@settings(deadline=None)
def test_folds_keep_groups_whole(rows, seed):
    groups = np.array([f"g{g}" for g, _ in rows])
    labels = np.array([label for _, label in rows])
    if min(len(set(groups[labels == k])) for k in (0, 1)) < 3:
        with pytest.raises(ValueError, match="folds need at least as many"):
            folds(labels, groups, 3, seed)
        return
    fold = folds(labels, groups, 3, seed)
    assert all(len(set(fold[groups == g])) == 1 for g in groups)


def test_cross_validation_scores_each_example_by_a_monitor_that_never_saw_it(pooled: Pooled):
    labels, groups = pooled.acts.labels, pooled.acts.groups
    fold = folds(labels, groups, 4, 0)
    (judged,) = cross_validate([recipe("logistic")], pooled, labels, fold)
    for one in range(4):
        outside = np.flatnonzero(fold != one)
        monitor = fit(recipe("logistic"), pooled, outside.tolist(), labels[outside])
        expected = Scorer([monitor]).maxima(pooled.acts, "prompt")[:, 0]
        np.testing.assert_allclose(judged.scores[fold == one], expected[fold == one], rtol=1e-5)


def test_a_search_that_is_run_again_fits_only_what_is_new(tmp_path, monkeypatch: pytest.MonkeyPatch):
    pooled = Pooled(planted(tmp_path))
    labels = pooled.acts.labels
    fold = folds(labels, pooled.acts.groups, 4, 0)
    first = cross_validate([recipe("logistic")], pooled, labels, fold, resume=True)
    fitted: list[str] = []

    def counted(recipe: Recipe, *args, **rest):
        fitted.append(recipe.trainer)
        return fit(recipe, *args, **rest)

    monkeypatch.setattr(sweep, "fit", counted)
    steps: list[tuple[int, int]] = []
    both = cross_validate(
        [recipe("lda"), recipe("logistic")],
        pooled,
        labels,
        fold,
        resume=True,
        progress=lambda *s: steps.append(s),
    )
    assert fitted == ["lda"] * 4
    assert (steps[0], steps[-1]) == ((4, 8), (8, 8))
    np.testing.assert_array_equal(both[1].scores, first[0].scores)


@pytest.mark.parametrize("other", ["labels", "folds", "seed", "settings"])
def test_finished_scores_are_not_taken_for_those_of_another_search(tmp_path, other: str):
    pooled = Pooled(planted(tmp_path))
    labels = pooled.acts.labels
    fold = folds(labels, pooled.acts.groups, 4, 0)
    Finished(tmp_path, labels, fold, "max", 0).write(recipe("logistic"), np.zeros(200))
    asked = {
        "labels": (Finished(tmp_path, 1 - labels, fold, "max", 0), recipe("logistic")),
        "folds": (Finished(tmp_path, labels, (fold + 1) % 4, "max", 0), recipe("logistic")),
        "seed": (Finished(tmp_path, labels, fold, "max", 1), recipe("logistic")),
        "settings": (
            Finished(tmp_path, labels, fold, "max", 0),
            Recipe("logistic", (PLANTED,), "prompt", MEAN, settings={"penalty": 7.0}),
        ),
    }
    finished, one = asked[other]
    assert finished.read([one]) == {}
    assert list(Finished(tmp_path, labels, fold, "max", 0).read([recipe("logistic")])) == [0]


def test_texts_of_several_groups_are_counted():
    texts = [("Owls  fly", "a"), ("owls fly", "b"), ("owls fly", "b"), ("bees", "a"), ("bees", "a")]
    assert num_repeated([Example(str(i), text=t, group=g) for i, (t, g) in enumerate(texts)]) == 3


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        ((0.9, 0.7, 0.6, 0), ()),
        ((0.9, 0.88, 0.6, 0), ("TF-IDF",)),
        ((0.9, 0.95, 0.6, 0), ("TF-IDF",)),
        ((0.9, 0.7, 0.93, 0), ("random directions",)),
        ((0.9, 0.7, 0.6, 3), ("3 examples",)),
        ((0.5, 0.5, 0.6, 2), ("TF-IDF", "random directions", "2 examples")),
    ],
)
def test_fitting_says_at_once_what_speaks_against_the_monitor(figures, told: tuple[str, ...]):
    value, words, chance, repeated = figures
    one = recipe("logistic").to_part()
    random = RandomDirections(num_directions=40, mean_auroc=0.5, p95_auroc=0.5, best_auroc=chance)
    section = FitSection(
        weights_sha256="",
        data_sha256="",
        num_examples=10,
        num_positive=5,
        num_groups=10,
        num_folds=5,
        num_repeated=repeated,
        recipe=one,
        candidates=(Candidate(recipe=one, auroc=Interval(value=value, low=value - 0.05, high=1.0)),),
        tfidf_auroc=Interval(value=words, low=0.4, high=1.0),
        random=(LayerBaseline(hook_point=str(PLANTED), random=random),),
    )
    found = doubts(section)
    assert len(found) == len(told)
    assert all(words in sentence for words, sentence in zip(told, found, strict=True))


def test_rows_that_are_not_finite_are_named(tmp_path):
    pooled = Pooled(planted(tmp_path, num=4, scale=np.inf))
    with pytest.raises(ValueError, match=r"'row:0': activations at blocks.1.hook_resid_post are not finite"):
        pooled.rows(PLANTED, "prompt")


def test_a_set_of_kinds_is_tried_once_each():
    search = Search(("logistic", "all-linear"), POINTS, (MEAN,))
    kinds = [one.trainer for one in search.recipes("prompt")]
    assert kinds == [
        "logistic",
        "logistic",
        *["mass_mean"] * 2,
        *["mass_mean_whitened"] * 2,
        "lda",
        "lda",
        "logistic_layers",
    ]


def test_a_kind_is_tried_with_the_aggregators_that_it_allows(monkeypatch: pytest.MonkeyPatch):
    picky = replace(TRAINERS["logistic"], aggregators=frozenset({"mean", "last"}))
    monkeypatch.setitem(TRAINERS, "picky", picky)
    ema, last = AggregatorSpec("ema", alpha=0.5), AggregatorSpec("last")
    tried = [one.aggregator for one in Search(("picky",), POINTS[:1], (ema, last)).recipes("prompt")]
    assert tried == [last]
    by_itself = [one.aggregator for one in Search(("picky",), POINTS[:1]).recipes("prompt")]
    assert by_itself == [MEAN]
    with pytest.raises(ValueError, match=r"'picky' can't be aggregated by ema; allowed: last, mean\. Leave"):
        Search(("picky",), POINTS[:1], (ema,)).recipes("prompt")
    with pytest.raises(ValueError, match=r"'picky' can't be aggregated by 'ema'; allowed: last, mean"):
        Recipe("picky", POINTS[:1], "prompt", ema)


def test_the_sweep_chooses_the_layer_where_something_was_planted(pooled: Pooled):
    labels, groups = pooled.acts.labels, pooled.acts.groups
    recipes = [Recipe("logistic", (point,), "prompt", MEAN) for point in POINTS]
    judged = cross_validate(recipes, pooled, labels, folds(labels, groups, 4, 0))
    candidates = [candidate(one, labels, groups, 0) for one in judged]
    assert recipes[best(candidates)].hook_points == (PLANTED,)
    assert candidates[1].auroc.value > 0.9
    assert abs(candidates[0].auroc.value - 0.5) < 0.15


def test_random_directions_come_in_pairs_of_opposites_and_are_drawn_where_activations_vary(tmp_path):
    pooled = Pooled(planted(tmp_path, scale=100.0))
    monitors = random_monitors(pooled, PLANTED, "prompt", MEAN)
    weights = np.stack([m.transform.columns[0].weight.numpy() for m in monitors])
    np.testing.assert_allclose(weights[::2], -weights[1::2])
    assert np.abs(weights[:, 0]).mean() > 0.9  # the massive channel dominates the covariance


def test_random_directions_read_less_than_the_probe(pooled: Pooled):
    found = random_figures(pooled, pooled.acts.labels, PLANTED, "prompt", MEAN, statistic="last")
    assert 0.5 <= found.mean_auroc <= found.p95_auroc <= found.best_auroc
    assert found.mean_auroc < 0.85


def test_words_that_say_nothing_give_tf_idf_nothing(pooled: Pooled):
    labels = pooled.acts.labels
    fold = folds(labels, pooled.acts.groups, 4, 0)
    assert abs(auroc(labels, tfidf_out_of_fold(pooled.acts.examples, labels, fold)) - 0.5) < 0.15


def test_a_recipe_survives_its_card(pooled: Pooled):
    for trainer in TRAINERS:
        one = recipe(trainer, exclude_first=1)
        assert Recipe.from_part(one.to_part()) == one


def test_a_recipe_names_what_it_does_not_know():
    with pytest.raises(ValueError, match=r"unknown trainer 'magic'; known: logistic"):
        Recipe("magic", POINTS, "prompt", MEAN)
    with pytest.raises(ValueError, match=r"no setting depth; it has penalty"):
        Recipe("logistic", POINTS, "prompt", MEAN, settings={"depth": 3})


def test_one_class_is_refused(pooled: Pooled):
    with pytest.raises(ValueError, match="both positive and negative"):
        fit(recipe("logistic"), pooled, [0, 2], np.zeros(2, dtype=np.int64))


def test_an_example_without_a_token_in_scope_is_named(pooled: Pooled):
    with pytest.raises(ValueError, match=r"'row:\d+' has no token in the response"):
        pooled.rows(PLANTED, "response")


def test_a_sigmoid_that_leaves_no_room_above_a_threshold_is_told():
    """Above some 17 a logit's sigmoid is 1 in single precision, which is what is decided on."""
    logits = np.linspace(-10, 10, 2000)
    assert not is_saturated(1 / (1 + np.exp(-logits)))
    logits[:3] = 30
    assert is_saturated(1 / (1 + np.exp(-logits)))
