"""Drift: what tells is how far a row has moved from the task, not where it lies."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from monitors.aggregate import AggregatorSpec
from monitors.lab.activations import ROWS, shard_path
from monitors.lab.pooling import Pooled
from monitors.lab.recipes import Recipe, fit
from monitors.lab.scoring import Scorer
from monitors.lab.statistics import auroc
from tests.unit.monitors.lab.synthetic import PLANTED, D, direction, made, nothing

REFERENCE = 3
LAST = AggregatorSpec("last")


def drifting(folder, seed=0):
    """Conversations about many things (a large shift of their own, in all of their rows); those with label 1 then move."""
    acts = made(folder, nothing, seed=seed, num_tokens=(6, 12))
    rng = np.random.default_rng(seed)
    path = shard_path(folder, PLANTED, 0)
    rows = load_file(path)
    start = 0
    for tokens, label in zip(acts.tokens, acts.labels, strict=True):
        stop = start + len(tokens.ids)
        rows[ROWS][start:stop] += torch.tensor(20 * rng.normal(size=D), dtype=torch.float32)
        rows[ROWS][start + REFERENCE + 1 : stop] += torch.tensor(4.0 * label * direction()).float()
        start = stop
    save_file(rows, path)
    return replace(acts, tokens=tuple(replace(tokens, reference=REFERENCE) for tokens in acts.tokens))


def test_it_finds_a_move_that_a_probe_of_places_can_not(tmp_path):
    pooled, fresh = Pooled(drifting(tmp_path / "a")), drifting(tmp_path / "b", seed=1)
    labels = pooled.acts.labels
    found = {}
    for trainer in ("delta", "logistic_last"):
        monitor = fit(Recipe(trainer, (PLANTED,), "prompt", LAST), pooled, range(len(labels)), labels)
        found[trainer] = auroc(fresh.labels, Scorer([monitor]).lasts(fresh, "prompt")[:, 0])
    assert found["delta"] > 0.95
    assert found["logistic_last"] < 0.75


def test_shuffled_labels_give_chance(tmp_path):
    pooled, fresh = Pooled(drifting(tmp_path / "a")), drifting(tmp_path / "b", seed=1)
    labels = np.random.default_rng(0).permutation(pooled.acts.labels)
    monitor = fit(Recipe("delta", (PLANTED,), "prompt", LAST), pooled, range(len(labels)), labels)
    assert abs(auroc(fresh.labels, Scorer([monitor]).lasts(fresh, "prompt")[:, 0]) - 0.5) < 0.15


def test_an_example_that_ends_with_its_task_is_refused_by_name(tmp_path):
    acts = drifting(tmp_path)
    pooled = Pooled(replace(acts, tokens=tuple(replace(t, reference=None) for t in acts.tokens)))
    with pytest.raises(ValueError, match="'row:0' has nothing after its first user message"):
        fit(Recipe("delta", (PLANTED,), "prompt", LAST), pooled, range(200), acts.labels)
