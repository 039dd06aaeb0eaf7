"""Calibration: what a certified threshold promises holds, whatever the scores look like."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from monitors.aggregate import AggregatorSpec
from monitors.base import Link, Monitor, Reference, Threshold
from monitors.drift import ScoreDrift
from monitors.lab.activations import Activations
from monitors.lab.calibrating import benign, calibrate, check, maxima, num_seen, threshold_for
from monitors.lab.dataset import Example
from monitors.lab.statistics import one_of_each
from monitors.lab.subject import Tokens
from monitors.linear import Linear
from tests.unit.monitors.lab.synthetic import PLANTED, direction, planted

Draw = Callable[[np.random.Generator, int], np.ndarray]
SHAPES: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "heavy tail": lambda rng, n: rng.standard_t(2, size=n),
    "few values": lambda rng, n: rng.integers(0, 6, size=n).astype(float),
    "a mass at the top": lambda rng, n: np.minimum(rng.normal(size=n), 1.5),
    "saturated": lambda rng, n: 1 / (1 + np.exp(-rng.normal(size=n) * 20)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("n", "fpr"), [(299, 0.01), (1000, 0.01), (400, 0.05)])
def test_the_budget_holds_in_nineteen_of_twenty_draws(shape: str, n: int, fpr: float):
    rng = np.random.default_rng(abs(hash((n, fpr))) % 2**32)
    traffic = np.float32(SHAPES[shape](np.random.default_rng(7), 200_000)).astype(float)
    broken = 0
    for _ in range(200):
        value, rank = threshold_for(rng.choice(traffic, n), fpr, 0.95)
        assert rank > 0
        broken += (traffic > value).mean() > fpr
    assert broken <= binom.ppf(0.999, 200, 0.05)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=400), st.sampled_from([0.05, 0.2]))
@settings(deadline=None)
def test_no_more_of_the_benign_scores_exceed_it_than_its_rank_says(scores, fpr):
    found = np.array(scores)
    value, rank = threshold_for(found, fpr, 0.95)
    assert (found > value).sum() <= max(0, rank - 1)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50))
def test_a_threshold_on_probabilities_stays_one_that_can_be_exceeded(scores):
    value, _ = threshold_for(np.array(scores), 0.05, 0.95, Link.SIGMOID)
    assert value <= 1.0
    assert value < 1.0 or max(scores) == 1.0


def test_rounding_does_not_lift_a_tied_score_over_its_threshold():
    scores = np.full(1000, 0.3)
    value, _ = threshold_for(scores, 0.01, 0.95)
    assert np.float32(0.3 * (1 + 1e-6)) < value


def test_too_few_requests_certify_nothing_and_the_threshold_lies_above_them_all():
    scores = np.random.default_rng(0).normal(size=298)
    value, rank = threshold_for(scores, 0.01, 0.95)
    assert rank == 0
    assert value > scores.max()


@pytest.fixture
def monitor() -> Monitor:
    weight = torch.tensor(direction(), dtype=torch.float32)[None]
    return Monitor("planted", Linear((PLANTED,), weight, torch.zeros(1)), AggregatorSpec("ema", alpha=0.5))


def traffic(folder, seed: int, num: int = 400, reply: int = 5, of_a_group: int = 1) -> Activations:
    """Benign requests, `of_a_group` neighbours of which share a group."""
    acts = planted(folder / str(seed), num=num, strength=0.0, seed=seed, reply=reply)
    grouped = [replace(e, group=f"g{i // of_a_group}") for i, e in enumerate(acts.examples)]
    return replace(acts, examples=tuple(grouped))


def without_replies(acts: Activations, first: int) -> Activations:
    """The same, of which those from `first` on have all their tokens in the prompt."""
    tokens = [t if i < first else Tokens(t.ids, len(t.ids)) for i, t in enumerate(acts.tokens)]
    return replace(acts, tokens=tuple(tokens))


def test_it_calibrates_prompt_response_and_conversation(tmp_path, monitor: Monitor):
    acts = traffic(tmp_path, 1)
    calibrated, section = calibrate(monitor, acts, budgets=(0.01, 0.05, 0.001))
    assert calibrated.calibration is not None
    thresholds = {(t.phase, t.fpr): t for t in calibrated.calibration.thresholds}
    assert {phase for phase, _ in thresholds} == {"prompt", "response", "conversation"}
    assert thresholds["conversation", 0.01].value >= thresholds["prompt", 0.05].value
    assert [t.certified for (phase, _), t in thresholds.items() if phase == "prompt"] == [True, True, False]
    assert (section.phase, section.num_examples) == ("response", 400)
    assert [b.num_needed for b in section.budgets] == [59, 299, 2995]


def test_fresh_traffic_stays_within_the_budget_and_other_traffic_does_not(tmp_path, monitor: Monitor):
    calibrated, _ = calibrate(monitor, traffic(tmp_path, 1), budgets=(0.05,))
    assert all(found.holds for found in check(calibrated, traffic(tmp_path, 2)))
    shifted = planted(tmp_path / "shifted", num=400, strength=3.0, seed=3, reply=5)
    assert not any(found.holds for found in check(calibrated, shifted))


def test_the_score_is_the_largest_running_one_rounded_as_the_server_rounds(tmp_path, monitor: Monitor):
    acts = traffic(tmp_path, 4, num=20)
    for found in maxima(monitor, acts)[:2]:
        for index, score in enumerate(found.scores):
            rows = acts.rows(PLANTED, index).numpy().astype(float)
            num_prompt = acts.tokens[index].num_prompt
            own = rows[:num_prompt] if found.phase == "prompt" else rows[num_prompt:]
            ema, largest = 0.0, -np.inf
            for z in own @ direction():
                ema = 0.5 * z + 0.5 * ema
                largest = max(largest, ema)
            assert score == np.float32(score)
            assert score == pytest.approx(largest, rel=1e-4, abs=1e-5)


def test_strata_of_length_cover_every_request_once(tmp_path, monitor: Monitor):
    _, section = calibrate(monitor, traffic(tmp_path, 5, reply=0), budgets=(0.05,))
    assert sum(stratum.num_requests for stratum in section.by_length) == 400
    edges = [(s.min_tokens, s.max_tokens) for s in section.by_length]
    assert all(a[1] + 1 == b[0] for a, b in pairwise(edges))
    total = sum(round(s.fpr.value * s.num_requests) for s in section.by_length)
    assert total == sum(
        found > section.budgets[0].threshold
        for found in maxima(monitor, traffic(tmp_path, 5, reply=0))[0].scores
    )


def test_references_and_norms_are_those_of_the_traffic(tmp_path, monitor: Monitor):
    acts = traffic(tmp_path, 6, reply=0)
    calibrated, _ = calibrate(monitor, acts)
    assert calibrated.calibration is not None
    (reference,) = calibrated.calibration.references
    scores = maxima(monitor, acts)[0].scores
    assert (reference.quantiles[0], reference.quantiles[-1]) == (scores.min(), scores.max())
    (norm,) = calibrated.calibration.row_norms
    logs = np.log(np.linalg.norm(np.concatenate([acts.rows(PLANTED, i) for i in range(400)]), axis=1))
    assert (norm.mean, norm.std) == (
        pytest.approx(logs.mean(), rel=1e-5),
        pytest.approx(logs.std(), rel=1e-4),
    )


def test_only_benign_examples_count():
    examples = [Example("a", label=0), Example("b", label=1), Example("c")]
    assert [e.id for e in benign(examples)] == ["a"]
    assert [e.id for e in benign(examples, unlabelled_is_benign=True)] == ["a", "c"]
    with pytest.raises(ValueError, match="--unlabelled-is-benign"):
        benign(examples[1:])


def test_a_monitor_that_fails_on_an_example_is_not_calibrated(tmp_path):
    weight = torch.full((1, 16), 3e38)
    broken = Monitor("broken", Linear((PLANTED,), weight, torch.zeros(1)))
    with pytest.raises(ValueError, match=r"'row:\d+': its score is not finite"):
        calibrate(broken, traffic(tmp_path, 8, num=20))


@pytest.mark.parametrize("steepness", [1, 5, 20, 60])
def test_the_budget_holds_for_probabilities_that_saturate(steepness: int):
    rng = np.random.default_rng(steepness)
    odds = np.random.default_rng(7).normal(size=200_000) * steepness
    scores = np.float32(1 / (1 + np.exp(-odds))).astype(float)
    broken = 0
    for _ in range(200):
        value, rank = threshold_for(rng.choice(scores, 1000), 0.01, 0.95, Link.SIGMOID)
        assert rank > 0
        broken += (scores > value).mean() > 0.01
    assert broken <= binom.ppf(0.999, 200, 0.05)


def test_without_drift_a_monitor_calibrated_on_enough_raises_no_alarm():
    rng = np.random.default_rng(11)
    for _ in range(5):
        scores = np.float32(rng.normal(size=1000)).astype(float)
        value, _ = threshold_for(scores, 0.01, 0.95)
        reference = Reference("prompt", 1000, tuple(np.quantile(scores, np.linspace(0, 1, 21)).tolist()))
        drift = ScoreDrift(reference, Threshold("prompt", 0.01, value, certified=True))
        for score in rng.normal(size=3000):
            drift.observe(float(score))
        assert drift.report().alarms == frozenset()


def test_fresh_requests_may_repeat_some_but_not_all_of_the_calibration():
    a, b = Example("a", text="hello", label=0), Example("b", text="good morning", label=0)
    assert num_seen([a, b], [Example("c", text="hello", label=0)]) == 1
    assert num_seen([], [a]) == 0
    with pytest.raises(ValueError, match="all 1 fresh examples"):
        num_seen([a], [a, b])


def of_groups(rng: np.random.Generator, sizes: np.ndarray, correlation: float) -> np.ndarray:
    """Standard normal scores of requests, those of a group correlated."""
    own = rng.normal(size=sizes.sum())
    shared = np.repeat(rng.normal(size=len(sizes)), sizes)
    return np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own


@pytest.mark.parametrize(
    ("num_groups", "fpr"), [(300, 0.01), (100, 0.05)], ids=["1 % of 300 groups", "5 % of 100 groups"]
)
@pytest.mark.parametrize("sizes", ["ten each", "one to forty"])
def test_of_groups_that_score_alike_the_certificate_holds_and_one_of_requests_does_not(
    num_groups: int, fpr: float, sizes: str
):
    """The rate of a threshold at which it fails is known: scores are standard normal."""
    rng = np.random.default_rng(3)
    draws = 400
    broken = {"group": 0, "request": 0}
    for draw in range(draws):
        size = np.full(num_groups, 10) if sizes == "ten each" else rng.geometric(0.1, num_groups).clip(1, 40)
        scores = of_groups(rng, size, correlation=0.95)
        drawn = one_of_each(np.repeat(np.arange(num_groups), size).astype(str), seed=draw)
        for unit, counted in (("group", scores[drawn]), ("request", scores)):
            value, rank = threshold_for(counted, fpr, 0.95)
            assert rank
            broken[unit] += norm.sf(value) > fpr
    most = binom.ppf(0.999, draws, 0.05)
    assert broken["group"] <= most < broken["request"]


def test_one_of_each_group_is_drawn_by_chance_and_without_a_look_at_its_score():
    groups = np.array(["a", "b", "a", "c", "a", "b"])
    drawn = np.array([one_of_each(groups, seed) for seed in range(600)])
    assert all(sorted(groups[rows]) == ["a", "b", "c"] for rows in drawn)
    times = np.bincount(drawn.ravel(), minlength=6)
    assert times.tolist() == pytest.approx([200, 300, 200, 600, 200, 300], abs=60)


def test_one_request_of_each_group_counts_unless_all_are_said_to_be_independent(tmp_path, monitor: Monitor):
    acts = traffic(tmp_path, 9, num=600, reply=0, of_a_group=10)
    calibrated, section = calibrate(monitor, acts, budgets=(0.05, 0.01))
    assert (section.num_examples, section.drawn_from) == (60, 600)
    assert [b.certified for b in section.budgets] == [True, False]
    assert calibrated.calibration.num_requests == calibrated.calibration.references[0].num_requests == 60
    _, every = calibrate(monitor, acts, budgets=(0.05, 0.01), unit="request")
    assert (every.num_examples, every.drawn_from) == (600, None)
    assert all(b.certified for b in every.budgets)


def test_the_interval_of_a_check_counts_one_request_of_each_group_too(tmp_path, monitor: Monitor):
    calibrated, _ = calibrate(monitor, traffic(tmp_path, 1, reply=0), budgets=(0.05,))
    widths = {}
    for of_a_group in (1, 20):
        (found,) = check(calibrated, traffic(tmp_path, 10, reply=0, of_a_group=of_a_group))
        widths[of_a_group] = found.rate.high - found.rate.low
    assert widths[20] > 2 * widths[1]


def test_responses_are_calibrated_on_the_requests_that_have_one(tmp_path, monitor: Monitor):
    acts = without_replies(traffic(tmp_path, 11), first=300)
    calibrated, section = calibrate(monitor, acts, budgets=(0.05, 0.01))
    assert {part.phase: part.num_examples for part in section.phases} == {
        "prompt": 400,
        "response": 300,
        "conversation": 300,
    }
    numbers = {t.phase: calibrated.calibration.num_requests_of(t) for t in calibrated.calibration.thresholds}
    assert numbers == {"prompt": 400, "response": 300, "conversation": 300}
    few = without_replies(traffic(tmp_path, 11), first=20)
    _, section = calibrate(monitor, few, budgets=(0.05, 0.01))
    assert [part.phase for part in section.phases] == ["prompt"]


def test_what_new_examples_do_not_cover_stays_as_it_was_calibrated(tmp_path, monitor: Monitor):
    first, before = calibrate(monitor, traffic(tmp_path, 12), budgets=(0.05, 0.01))
    prompts = traffic(tmp_path, 13, num=100, reply=0)
    second, section = calibrate(first, prompts, budgets=(0.05,))
    old, new = first.calibration, second.calibration
    for phase in ("response", "conversation"):
        kept = [t for t in new.thresholds if t.phase == phase]
        assert kept == [t for t in old.thresholds if t.phase == phase]
        assert {new.num_requests_of(t) for t in kept} == {400}
    assert [(t.fpr, new.num_requests_of(t)) for t in new.thresholds if t.phase == "prompt"] == [(0.05, 100)]
    assert [(r.phase, r.num_requests) for r in new.references] == [("prompt", 100), ("response", 400)]
    whole = section.with_phases_of(before).bound_to("0" * 64)
    assert [(p.phase, p.num_examples) for p in whole.phases] == [
        ("prompt", 100),
        ("response", 400),
        ("conversation", 400),
    ]
    assert {p.weights_sha256 for p in whole.phases} == {"0" * 64}


def test_one_calibration_has_one_confidence(tmp_path, monitor: Monitor):
    first, _ = calibrate(monitor, traffic(tmp_path, 14, num=100), budgets=(0.05,))
    prompts = traffic(tmp_path, 15, num=100, reply=0)
    with pytest.raises(
        ValueError, match=r"response and conversation was calibrated with confidence 0.95, not 0.9"
    ):
        calibrate(first, prompts, budgets=(0.05,), confidence=0.9)
    anew, _ = calibrate(first, traffic(tmp_path, 16, num=100), budgets=(0.05,), confidence=0.9)
    assert anew.calibration.confidence == 0.9
