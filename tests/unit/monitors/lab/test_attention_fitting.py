"""Trainers of attention and MultiMax probes: they find the one token that matters, and nothing where there is nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence

from monitors.aggregate import AggregatorSpec
from monitors.base import Link, Monitor
from monitors.lab.activations import Activations
from monitors.lab.baselines import random_monitors
from monitors.lab.fitting import Search
from monitors.lab.pooling import Pooled
from monitors.lab.recipes import Recipe, fit
from monitors.lab.scoring import Scorer
from monitors.lab.statistics import auroc
from monitors.lab.trainers import TRAINERS
from monitors.lab.trainers.attention import attention_loss
from tests.unit.monitors.lab.synthetic import PLANTED, POINTS, made, nothing

KINDS = ("attention", "rolling_attention", "multimax")
MEAN = AggregatorSpec("mean")
SMALL = {"heads": 3.0, "width": 24.0, "epochs": 25.0, "learning_rate": 5e-3}


def haystack(folder: Path, seed: int = 0, **rest) -> Activations:
    """One telling token among 40 to 80, in each positive example."""
    return made(folder, nothing, seed=seed, num_tokens=(40, 80), needle=6.0, **rest)


def fitted(kind: str, acts: Activations, *, labels=None, seed: int = 0, **changes: float) -> Monitor:
    labels = acts.labels if labels is None else labels
    recipe = Recipe(kind, (PLANTED,), "prompt", TRAINERS[kind].run_with[0], settings=changes)
    return fit(recipe, Pooled(acts), range(len(labels)), labels, seed=seed)


def lasts(monitor: Monitor, acts: Activations) -> np.ndarray:
    return Scorer([monitor]).lasts(acts, "prompt")[:, 0]


@pytest.fixture(scope="module")
def acts(tmp_path_factory: pytest.TempPathFactory) -> Activations:
    return haystack(tmp_path_factory.mktemp("acts"))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Activations:
    return haystack(tmp_path_factory.mktemp("fresh"), seed=1)


@pytest.mark.parametrize("kind", KINDS)
def test_finds_the_one_token_that_matters_where_a_mean_does_not(acts, fresh, kind: str):
    mean = auroc(fresh.labels, lasts(fitted("logistic", acts), fresh))
    own = auroc(fresh.labels, lasts(fitted(kind, acts, **SMALL), fresh))
    assert mean < 0.8
    assert own > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_shuffled_labels_teach_nothing(acts, fresh, kind: str):
    rng = np.random.default_rng(3)
    found = [
        auroc(fresh.labels, lasts(fitted(kind, acts, labels=rng.permutation(acts.labels), **SMALL), fresh))
        for _ in range(3)
    ]
    assert abs(np.mean(found) - 0.5) < 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_monitor_and_another_seed_another(acts, kind: str):
    quick = {**SMALL, "epochs": 2.0}
    torch.manual_seed(1)
    first = fitted(kind, acts, **quick).transform.tensors
    torch.manual_seed(2)
    again = fitted(kind, acts, **quick).transform.tensors
    other = fitted(kind, acts, seed=7, **quick).transform.tensors
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["value"], other["value"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_the_standardisation_is_folded_in(tmp_path, kind: str, layers: int):
    """Activations of another scale and offset give another monitor with the same scores."""
    quick = {**SMALL, "epochs": 3.0, "layers": float(layers)}
    plain = haystack(tmp_path / "plain", num=80)
    massive = haystack(tmp_path / "massive", num=80, scale=300.0, offset=500.0)
    logits = [lasts(replace(fitted(kind, one, **quick), link=Link.IDENTITY), one) for one in (plain, massive)]
    assert np.abs(logits[0] - logits[1]).max() < 0.01 * logits[0].std()


@pytest.mark.parametrize("kind", KINDS)
def test_at_first_all_tokens_weigh_alike_and_values_are_small(acts, kind: str):
    tensors = fitted(kind, acts, epochs=0.0).transform.tensors
    if kind != "multimax":
        assert not tensors["query"].any()
    assert 0 < tensors["value"].std() < 0.1
    assert len({tuple(head) for head in tensors["value"].tolist()}) == len(tensors["value"])


@pytest.mark.parametrize(
    ("kind", "run", "trained_with"),
    [
        ("attention", AggregatorSpec("attention"), None),
        ("rolling_attention", AggregatorSpec("rolling_attention", window=10), AggregatorSpec("attention")),
        ("multimax", AggregatorSpec("max"), AggregatorSpec("softmax", temperature=5.0)),
    ],
)
def test_what_it_was_trained_with_is_said_where_it_is_run_with_another(acts, kind: str, run, trained_with):
    monitor = fitted(kind, acts, epochs=0.0)
    assert (monitor.aggregator, monitor.trained_with) == (run, trained_with)
    num_heads, layers = (1, 0) if kind == "attention" else (10, 2)
    tensors = monitor.transform.tensors
    assert len(tensors["value"]) == num_heads
    assert [len(t) for name, t in tensors.items() if name.endswith(".weight")] == [100] * layers


rows = st.lists(
    st.lists(st.tuples(*[st.floats(-20, 20)] * 4), min_size=1, max_size=9).map(np.array),
    min_size=1,
    max_size=4,
)


@given(rows)
@settings(deadline=None)
def test_the_loss_of_each_text_in_a_batch_is_that_of_what_the_server_would_compute(texts):
    padded = pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
    labels = torch.arange(len(texts)).double() % 2
    found = attention_loss(padded, torch.tensor([len(text) for text in texts]), labels)
    means = [AggregatorSpec("attention").start(4).update(text.copy())[-1] for text in texts]
    scores = torch.tensor(np.array(means)).sum(dim=1)
    expected = F.binary_cross_entropy_with_logits(scores, labels, reduction="none")
    torch.testing.assert_close(found, expected)


def aggregators(*kinds: str, asked: tuple[AggregatorSpec, ...] = (), **rest) -> list[tuple[str, str]]:
    recipes = Search(kinds, POINTS[:1], asked).recipes("prompt", **rest)
    return [(one.trainer, one.aggregator.kind) for one in recipes]


def test_each_kind_is_tried_with_what_suits_it():
    assert aggregators(*KINDS) == [
        ("attention", "attention"),
        ("rolling_attention", "rolling_attention"),
        ("multimax", "max"),
    ]
    assert aggregators("lda") == [("lda", "mean"), ("lda", "ema")]
    assert aggregators("lda", is_streamed=False) == [("lda", "mean")]


def test_a_kind_of_a_set_that_allows_no_aggregator_is_left_out():
    asked = (MEAN, AggregatorSpec("rolling_attention", window=4))
    tried = aggregators("all", asked=asked[:1])
    assert ("multimax", "mean") in tried
    assert not {"attention", "rolling_attention"} & {kind for kind, _ in tried}
    assert ("attention", "rolling_attention") in aggregators("all", asked=asked)
    with pytest.raises(ValueError, match="no kind of all-linear can be aggregated by rolling_attention"):
        aggregators("all-linear", asked=asked[1:])
    with pytest.raises(ValueError, match="'attention' can't be aggregated by mean; allowed: attention, roll"):
        aggregators("lda", "attention", asked=asked[:1])


def test_random_directions_stand_beside_a_probe_that_weighs_tokens(acts):
    window = AggregatorSpec("rolling_attention", window=10)
    for drawn in random_monitors(Pooled(acts), PLANTED, "prompt", window):
        assert drawn.aggregator == AggregatorSpec("max_rolling_mean", window=10)
