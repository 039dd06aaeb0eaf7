"""The card's parts against their plain definitions."""

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monitors.aggregate import AggregatorSpec
from monitors.base import Column, Monitor, Rectifier, Transform
from monitors.lab.causal import parse_behaviour
from monitors.lab.causal.behaviour import first_tokens
from monitors.lab.causal.directions import directions
from monitors.lab.causal.edits import (
    Axis,
    concept_writes,
    null,
    patch,
    push,
    random_writes,
    to_high,
    to_low,
    wrong_sign,
)
from monitors.lab.causal.effects import Paired, holm, p_value
from monitors.lab.causal.faithfulness import _givers
from monitors.lab.causal.forward import Passage, run
from monitors.lab.causal.interventions import Prompts
from monitors.lab.causal.neutral import matched_scale
from monitors.lab.causal.reading import aurocs, beaten
from monitors.lab.statistics import auroc
from monitors.linear import Linear
from monitors.sae_feature import SaeFeature
from monitors.types import HookPoint
from tests.unit.monitors.lab.causal.toy import CAUSE, YES, D, toy_examples, toy_subject

POINT = HookPoint(1)
UNIT = torch.nn.functional.normalize(torch.arange(1.0, D + 1), dim=0)
AXES = (Axis(POINT, UNIT, low=-0.5, high=1.5),)
X = torch.randn(7, D, generator=torch.Generator().manual_seed(0))
OWNER = torch.arange(7)


def never(num):
    pass


def rows_of(subject, example):
    """At POINT, [num_tokens, D]."""
    tokens, found = subject.tokenize(example), []
    run(
        subject,
        [Passage(tokens, 0)],
        (),
        None,
        watched=[POINT],
        take=lambda i, seen: found.append(seen),
        step=never,
    )
    return found[0][POINT]


def test_edits_do_what_their_formulas_say():
    rest = X - (X @ UNIT)[:, None] * UNIT
    torch.testing.assert_close(to_low(AXES)(POINT, X, OWNER), rest - 0.5 * UNIT)
    torch.testing.assert_close(to_high(AXES)(POINT, X, OWNER), rest + 1.5 * UNIT)
    torch.testing.assert_close(push(AXES, -0.5)(POINT, X, OWNER), X - 0.5 * 2.0 * UNIT)
    donors = {POINT: X.flip(0)}
    torch.testing.assert_close(patch(AXES, donors, whole=True)(POINT, X, OWNER), X.flip(0))
    along = patch(AXES, donors, whole=False)(POINT, X, OWNER)
    torch.testing.assert_close(along, rest + (X.flip(0) @ UNIT)[:, None] * UNIT)


def test_null_edits_change_each_row_by_as_much_as_the_edit_itself():
    labels = np.array([0, 1, 0, 1, 0, 1, 0])
    (writes,) = random_writes({POINT: X}, labels, 1, seed=0)
    own = to_high(AXES)(POINT, X, OWNER) - X
    other = null(AXES, writes, high=True)(POINT, X, OWNER) - X
    torch.testing.assert_close(other.norm(dim=1), own.norm(dim=1))
    opposite = null(AXES, wrong_sign(AXES), high=True)(POINT, X, OWNER) - X
    torch.testing.assert_close(opposite, -own)


def test_random_directions_leave_the_difference_of_the_classes_out():
    """All variation but the classes' is along the first axis, so that is where random directions point."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    rows = torch.zeros(40, D)
    rows[:, 0] = torch.tensor(rng.normal(size=40)).float()
    rows[:, 1] = 100.0 * torch.tensor(labels)
    for writes in random_writes({POINT: rows}, labels, 5, seed=1):
        torch.testing.assert_close(writes[POINT].abs(), torch.eye(D)[0])


def test_the_direction_of_another_concept_is_where_its_score_varies_within_the_classes():
    """The score is the first coordinate; the classes differ along the second, and differ in the score."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    rows = torch.zeros(60, D)
    rows[:, 0] = torch.tensor(rng.normal(size=60)).float()
    rows[:, 1] = 100.0 * torch.tensor(labels)
    scores = rows[:, 0].double().numpy() + 5.0 * labels
    writes = concept_writes(scores, {POINT: rows}, labels)
    torch.testing.assert_close(writes[POINT], torch.eye(D)[0])
    assert concept_writes(np.where(labels == 1, 0.9, 0.1), {POINT: rows}, labels) is None
    scores[7] = np.nan
    assert concept_writes(scores, {POINT: rows}, labels) is None


class _Neutral:
    """Text whose KL is the square of the edit's scale, up to a limit."""

    def __init__(self, per_square, limit=1e9):
        self.kl_at, self.num_tries = (lambda scale: min(per_square * scale**2, limit)), 0

    def mean_kl(self, scale):
        self.num_tries += 1
        return self.kl_at(scale)


@pytest.mark.parametrize("per_square", [1e-3, 0.2, 30.0])
def test_null_edits_are_scaled_until_they_do_as_much_to_neutral_text(per_square):
    neutral = _Neutral(per_square)
    found = matched_scale(neutral, 0.2, lambda scale: scale, steps=5)
    assert neutral.kl_at(found.scale) == pytest.approx(0.2, rel=0.11)
    assert found.ratio == pytest.approx(neutral.kl_at(found.scale) / 0.2)
    assert not found.is_weaker
    assert neutral.num_tries <= 5


def test_a_null_edit_that_can_do_no_more_is_called_weaker():
    assert matched_scale(_Neutral(0.2, limit=0.1), 0.2, lambda scale: scale, steps=5).is_weaker
    assert not matched_scale(
        _Neutral(1e6), 1e-6, lambda scale: scale, steps=5
    ).is_weaker  # too strong is fair


@pytest.mark.parametrize("seed", [0, 1])
def test_an_effect_is_a_ratio_of_means_and_its_interval_comes_from_whole_groups(seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(60) % 2
    base, change = labels * 4.0 + rng.normal(size=60), rng.normal(1.0, 1.0, size=60)
    groups = np.array([f"g{i // 3}" for i in range(60)])
    effect = Paired(base, labels, groups, seed).effect(change, labels == 1)
    plain = change[labels == 1].mean() / (base[labels == 1].mean() - base[labels == 0].mean())
    assert effect.value == pytest.approx(plain)
    draws = []
    for _ in range(1500):
        rows = np.concatenate([np.flatnonzero(groups == g) for g in rng.choice(np.unique(groups), size=20)])
        y = labels[rows]
        draws.append(change[rows][y == 1].mean() / (base[rows][y == 1].mean() - base[rows][y == 0].mean()))
    assert (effect.low, effect.high) == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.03)


def test_p_values_count_nulls_and_holm_steps_down():
    assert p_value(0.5, [0.1, -0.6, 0.5, 0.2]) == pytest.approx(3 / 5)
    assert p_value(2.0, [0.1] * 19) == pytest.approx(1 / 20)
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=30))
def test_rank_sums_give_the_auroc(rows):
    labels = np.array([int(label) for label, _ in rows])
    scores = np.array([float(score) for _, score in rows])
    if 0 < labels.sum() < len(labels):
        assert aurocs(labels, scores[:, None])[0] == pytest.approx(auroc(labels, scores))


def test_a_sham_with_its_sign_turned_round_still_counts():
    labels = np.array([0, 0, 0, 1, 1, 1])
    own = np.array([0.0, 1.0, 2.0, 1.5, 3.0, 4.0])
    better, worse = 10.0 * labels + np.arange(6), np.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    assert beaten(labels, own, np.column_stack([-better, worse, -worse])) == pytest.approx(2 / 3)


def test_of_two_that_separate_fully_the_wider_apart_is_the_better():
    labels = np.array([0, 0, 1, 1])
    wide, narrow = np.array([0.0, 0.1, 9.0, 9.1]), np.array([0.0, 4.0, 5.0, 9.0])
    assert beaten(labels, wide, narrow[:, None]) == 1.0
    assert beaten(labels, narrow, wide[:, None]) == 0.0


def test_behaviours_are_what_the_model_says_without_batching_or_padding():
    subject, examples = toy_subject(), toy_examples(5)
    labels = np.array([e.label for e in examples])
    everyone = np.ones(5, dtype=bool)
    for text in (
        f"tokens:{YES}|30",
        "continuations",
        "python:tests.unit.monitors.lab.causal.judges:yes_logit",
    ):
        behaviour = parse_behaviour(text, subject, examples[0])
        prompts = Prompts(subject, behaviour, examples, labels, from_last=False, exclude_first=0, step=never)
        for example, value in zip(examples, prompts.measure((), None, everyone), strict=True):
            ids = list(map(int, example.tags["ids"].split()))
            last = subject.model(torch.tensor([ids]), torch.ones(1, len(ids))).logits[0, -1]
            p = last.double().softmax(0)
            plain = {
                "t": (p[YES] + p[30]).log() - (1 - p[YES] - p[30]).log(),
                "c": p[YES].log() - p[30].log(),
                "p": last[YES],
            }[text[0]]
            assert value == pytest.approx(float(plain), abs=1e-4)


def test_an_edit_changes_its_own_rows_only():
    subject = toy_subject()
    tokens = [subject.tokenize(e) for e in toy_examples(3)]
    seen = []

    def edit(point, x, owner):
        seen.append((len(x), owner.tolist()))
        return x + 5.0

    logits = {}
    run(
        subject,
        [Passage(t, start=len(t.ids) - 1, owner=i) for i, t in enumerate(tokens)],
        [POINT],
        edit,
        consume=lambda indices, its: logits.update(zip(indices, its, strict=True)),
        step=never,
    )
    plain = subject.model(torch.tensor([tokens[0].ids]), torch.ones(1, len(tokens[0].ids))).logits[0]
    assert seen[0][0] == 3
    torch.testing.assert_close(logits[0][:-1], plain[:-1])
    assert not torch.allclose(logits[0][-1], plain[-1])


def test_a_random_position_is_one_token_in_scope_before_the_last():
    subject, examples = toy_subject(), toy_examples(40)
    labels = np.array([e.label for e in examples])
    behaviour = parse_behaviour("continuations", subject, examples[0])
    prompts = Prompts(
        subject, behaviour, examples, labels, from_last=False, exclude_first=2, step=never, seed=3
    )
    found = {}

    def edit(point, x, owner):
        for row, one in zip(x, owner.tolist(), strict=True):
            found.setdefault(one, []).append(row)
        return x

    prompts.measure([POINT], edit, np.ones(40, dtype=bool), where="random")
    places = []
    for owner, (first, second) in found.items():  # one token in each of the two continuations
        natural = rows_of(subject, examples[owner])
        (place,) = [t for t, row in enumerate(natural) if torch.allclose(row, first, atol=1e-5)]
        torch.testing.assert_close(first, second)
        assert 2 <= place < len(natural) - 1
        places.append(place)
    assert len(found) == 40
    assert len(set(places)) > 3


def test_a_negative_is_patched_from_the_positive_of_its_pair():
    subject = toy_subject()
    examples = [replace(e, group=f"pair{i // 2}") for i, e in enumerate(toy_examples(6))]
    examples[4] = replace(examples[4], group="alone")
    labels = np.array([e.label for e in examples])
    behaviour = parse_behaviour("continuations", subject, examples[0])
    prompts = Prompts(
        subject, behaviour, tuple(examples), labels, from_last=False, exclude_first=0, step=never
    )
    givers = _givers(prompts)
    assert givers[[0, 2]].tolist() == [1, 3]
    assert labels[givers].all()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("refuses", "write tokens:Sorry"),
        ("tokens:", "write tokens:Sorry"),
        ("python:nothing.there:f", "can't import 'nothing.there'"),
        ("python:json:nothing", "no function 'nothing'"),
    ],
)
def test_a_behaviour_that_cannot_be_read_is_refused(text, told):
    with pytest.raises(ValueError, match=told):
        parse_behaviour(text, toy_subject(), toy_examples(1)[0])


def test_an_encoder_has_no_behaviour():
    with pytest.raises(ValueError, match="encoder"):
        parse_behaviour("continuations", replace(toy_subject(), is_causal=False), toy_examples(1)[0])


def test_a_continuation_that_is_missing_is_named():
    subject, example = toy_subject(), replace(toy_examples(1)[0], tags={"ids": "20 21"})
    behaviour = parse_behaviour("continuations", subject, example)
    with pytest.raises(ValueError, match="no tag 'continuation_positive'"):
        behaviour.sequences(subject, example)


def test_a_prompt_that_would_be_cut_is_refused():
    subject, example = replace(toy_subject(), max_tokens=3), toy_examples(1)[0]
    behaviour = parse_behaviour(f"tokens:{YES}", subject, example)
    assert first_tokens(["7 9"], subject, example) == (7,)
    with pytest.raises(ValueError, match="at most 3"):
        behaviour.sequences(subject, example)


def test_the_direction_of_a_feature_is_what_writing_it_adds():
    feature = SaeFeature(POINT, 3, UNIT, 0.0, 2.0 * CAUSE, rectifier=Rectifier(0.1))
    found = directions(Monitor("f", feature), {POINT: X})
    torch.testing.assert_close(found[POINT], CAUSE)


def test_the_direction_of_a_linear_probe_is_its_weight_at_each_layer():
    weight = torch.stack([3.0 * UNIT, -2.0 * CAUSE])
    points = (HookPoint(0), HookPoint(2))
    found = directions(Monitor("m", Linear(points, weight, torch.zeros(1)), AggregatorSpec("mean")), {})
    torch.testing.assert_close(found[points[0]], UNIT)
    torch.testing.assert_close(found[points[1]], -CAUSE)


def test_the_direction_of_any_other_kind_is_its_mean_gradient_on_positives():
    """Two rectified columns, whose gradients are written down."""
    found = directions(Monitor("m", _Bent()), {POINT: X})[POINT]
    p = X @ UNIT
    gradients = ((p + 0.3 > 0).float() - 2 * (p < 0).float())[:, None] * UNIT
    torch.testing.assert_close(found, torch.nn.functional.normalize(gradients.mean(dim=0), dim=0))


class _Bent(Transform):
    kind = "bent"
    tensors = params = MappingProxyType({})
    columns = (
        Column(POINT, UNIT, 0.3, rectifier=Rectifier()),
        Column(POINT, -2 * UNIT, rectifier=Rectifier()),
    )

    @classmethod
    def restore(cls, hook_points, tensors, params):
        return cls()


def test_a_direction_of_zero_is_refused():
    with pytest.raises(ValueError, match="so there is nothing to write or remove"):
        directions(Monitor("m", Linear((POINT,), torch.zeros(1, D), torch.zeros(1))), {})
