"""Steering vectors against their definitions, and the sweep on a model whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from monitors.lab.activations import collect
from monitors.lab.causal import parse_behaviour
from monitors.lab.pooling import Pooled
from monitors.lab.vectors import VectorSearch, best, fit_vector, probe_of, search
from monitors.steering import steer
from monitors.types import HookPoint
from tests.unit.monitors.lab.causal.toy import CAUSE, YES, toy_examples, toy_subject

POINTS = (HookPoint(1), HookPoint(2))


@pytest.fixture(scope="module")
def pooled(tmp_path_factory):
    return Pooled(collect(toy_subject(), toy_examples(24), POINTS, tmp_path_factory.mktemp("acts")))


def class_means(pooled, point, rows_of):
    rows = [rows_of(pooled.acts.rows(point, i)).double() for i in range(24)]
    return [
        torch.stack([r for r, y in zip(rows, pooled.acts.labels, strict=True) if y == label]).mean(0)
        for label in (0, 1)
    ]


def test_mass_mean_is_the_difference_of_the_mean_rows(pooled):
    vector = fit_vector("v", "mass_mean", pooled, POINTS, "prompt")
    assert vector.operation == "add"
    for direction in vector.directions:
        low, high = class_means(pooled, direction.hook_point, lambda rows: rows.mean(dim=0))
        torch.testing.assert_close(direction.vector, (high - low).float())


def test_ace_puts_each_class_where_the_other_was(pooled):
    vector = fit_vector("v", "ace", pooled, POINTS[:1], "prompt", max_norm_ratio=1e9)
    (direction,) = vector.directions
    low, high = class_means(pooled, POINTS[0], lambda rows: rows.mean(dim=0))
    for strength, mean in ((0.0, low), (1.0, high)):
        steered, _ = steer(torch.randn(4, len(low)), vector, direction, torch.full((4, 1), strength))
        torch.testing.assert_close(
            steered @ direction.unit, (mean.float() @ direction.unit).expand(4), rtol=1e-4, atol=1e-4
        )


def test_caa_is_the_mean_difference_of_pairs_at_the_last_token(tmp_path):
    """Every pair counts the same, however many examples it has; what a pair has in common cancels."""
    examples = toy_examples(9)
    pairs = ["a", "a", "b", "b", "b", "b", "c", "c", "c"]
    examples = tuple(replace(e, group=pair) for e, pair in zip(examples, pairs, strict=True))
    pooled = Pooled(collect(toy_subject(), examples, POINTS[:1], tmp_path))
    rows = np.stack([pooled.acts.rows(POINTS[0], i)[-1].double().numpy() for i in range(9)])
    labels, groups = pooled.acts.labels, np.array(pairs)
    plain = np.mean(
        [
            rows[(groups == g) & (labels == 1)].mean(axis=0)
            - rows[(groups == g) & (labels == 0)].mean(axis=0)
            for g in "abc"
        ],
        axis=0,
    )
    (direction,) = fit_vector("v", "caa", pooled, POINTS[:1], "prompt").directions
    np.testing.assert_allclose(direction.vector.numpy(), plain, rtol=1e-4, atol=1e-5)


def test_the_probe_of_a_vector_points_where_the_vector_does(pooled):
    vector = fit_vector("v", "mass_mean", pooled, POINTS, "prompt")
    probe = probe_of(vector, "mean")
    for column, direction in zip(probe.transform.columns, vector.directions, strict=True):
        torch.testing.assert_close(column.weight, direction.vector / direction.vector.norm())


def test_the_sweep_keeps_one_layer_that_moves_behaviour(tmp_path):
    subject, examples = toy_subject(), toy_examples(60)
    behaviour = parse_behaviour(f"tokens:{YES}", subject, examples[0])
    wanted = VectorSearch("v", "mass_mean", POINTS, "prompt", behaviour, max_norm_ratio=3.0)
    vector, swept = search(wanted, subject, examples, (), tmp_path)
    assert len(swept) == 8
    assert len(vector.directions) == 1
    assert vector.directions[0].unit @ CAUSE > 0.5
    effects = [one.effect.value for one in swept if one.vector is swept[0].vector]
    assert effects == sorted(effects)
    assert effects[-1] > 0.5
    assert best(swept).effect.low > 0


def test_classes_that_are_the_same_have_no_direction(tmp_path):
    examples = tuple(replace(e, tags={"ids": "20 21"}) for e in toy_examples(4))
    pooled = Pooled(collect(toy_subject(), examples, POINTS, tmp_path))
    with pytest.raises(ValueError, match="same mean"):
        fit_vector("v", "mass_mean", pooled, POINTS, "prompt")
