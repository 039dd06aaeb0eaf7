"""Evaluation: the monitor beside its baselines, by data set, and where nothing can be learned."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from monitors.aggregate import AggregatorSpec
from monitors.base import Calibration, Monitor, Threshold
from monitors.lab.activations import Activations
from monitors.lab.evaluating import Trial, evaluate, figures
from monitors.lab.recipes import Recipe
from monitors.lab.scoring import Scorer
from monitors.linear import Linear
from tests.unit.monitors.lab.synthetic import PLANTED, direction, planted

MEAN = AggregatorSpec("mean")
RECIPE = Recipe("logistic", (PLANTED,), "prompt", MEAN)


@pytest.fixture
def monitor() -> Monitor:
    weight = torch.tensor(direction(), dtype=torch.float32)[None]
    return Monitor("planted", Linear((PLANTED,), weight, torch.zeros(1)), MEAN)


def named(acts: Activations, *names: str) -> Activations:
    """The examples spread over data sets, by pairs of one positive and one negative."""
    examples = tuple(replace(e, dataset=names[i // 2 % len(names)]) for i, e in enumerate(acts.examples))
    return replace(acts, examples=examples)


def test_a_monitor_that_reads_what_was_planted_beats_words_and_random_directions(tmp_path, monitor: Monitor):
    found = evaluate(monitor, Trial(planted(tmp_path, strength=2.5), "prompt")).whole
    assert found.monitor.auroc.value > 0.95
    assert found.tfidf is not None
    assert found.random is not None
    assert found.tfidf.auroc.value < 0.65
    assert found.random.mean_auroc < found.monitor.auroc.value
    assert (found.num_positive, found.num_negative) == (100, 100)


def test_a_monitor_of_noise_is_seen_to_be_one(tmp_path, monitor: Monitor):
    found = evaluate(monitor, Trial(planted(tmp_path, strength=0.0), "prompt")).whole
    assert found.monitor.auroc.low < 0.55


def test_tf_idf_is_fitted_on_the_training_data_where_there_is_some(tmp_path, monitor: Monitor):
    trial = Trial(planted(tmp_path / "a"), "prompt")
    assert evaluate(monitor, trial).tfidf_fitted_on == "these examples, out of fold"
    with_training = replace(trial, trained=planted(tmp_path / "b", seed=1))
    assert evaluate(monitor, with_training).tfidf_fitted_on == "training data"


def test_each_data_set_is_judged_alone_and_after_fitting_without_it(tmp_path, monitor: Monitor):
    acts = named(planted(tmp_path, strength=2.5), "mail", "forum")
    section = evaluate(monitor, Trial(acts, "prompt", recipe=RECIPE))
    assert [s.name for s in section.by_dataset] == ["forum", "mail"]
    assert [s.compared.num_positive for s in section.by_dataset] == [50, 50]
    assert all(s.compared.monitor.auroc.value > 0.9 for s in section.leave_one_dataset_out)


def test_what_only_one_data_set_teaches_is_missing_without_it(tmp_path, monitor: Monitor):
    signal, noise = planted(tmp_path / "a", strength=2.5), planted(tmp_path / "b", strength=0.0, seed=5)
    trained = named(noise, "noise")
    trained = replace(trained, examples=(*trained.examples[:-2], *named(noise, "signal").examples[-2:]))
    tested = named(signal, "signal", "other")
    section = evaluate(monitor, Trial(tested, "prompt", trained, RECIPE))
    left_out = {s.name: s.compared.monitor.auroc.value for s in section.leave_one_dataset_out}
    assert left_out["signal"] < 0.9  # fitted on noise


def test_without_a_recipe_nothing_is_fitted_anew(tmp_path, monitor: Monitor):
    acts = named(planted(tmp_path), "mail", "forum")
    assert evaluate(monitor, Trial(acts, "prompt")).leave_one_dataset_out == ()


def test_the_delay_counts_tokens_until_the_threshold_is_first_exceeded(tmp_path, monitor: Monitor):
    acts = planted(tmp_path, strength=2.5)
    threshold = Threshold("prompt", 0.01, 1.5, certified=True)
    calibrated = replace(monitor, calibration=Calibration(300, 0.95, (threshold,)))
    delays = []
    for index, label in enumerate(acts.labels):
        above = np.flatnonzero(Scorer([monitor]).running(acts, index)["prompt"][:, 0] > 1.5)
        if label and len(above):
            delays.append(above[0] + 1)
    section = evaluate(calibrated, Trial(acts, "prompt"))
    assert section.detection_delay_tokens == pytest.approx(np.percentile(delays, [25, 50, 75]))
    assert evaluate(monitor, Trial(acts, "prompt")).detection_delay_tokens == ()


def test_few_negatives_show_no_small_budget():
    labels = np.repeat([0, 1], 50)
    found = figures(labels, np.arange(100.0), labels.astype(str))
    assert (found.at_fpr, found.log_auroc) == ((), None)


def test_a_monitor_that_fails_is_not_measured(tmp_path):
    broken = Monitor("broken", Linear((PLANTED,), torch.full((1, 16), 3e38), torch.zeros(1)), MEAN)
    with pytest.raises(ValueError, match="its score is not finite"):
        evaluate(broken, Trial(planted(tmp_path, num=20), "prompt"))
