"""Calibrates a probe on held-out harmless exchanges and measures it on others, beside what costs nothing."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from deploy.demo import figures, probes, report
from deploy.demo.activations import Exchange, collect
from deploy.demo.corpus.build import TRAIN_SEED, rows
from deploy.demo.probes import EXCLUDE_FIRST, Goal
from monitors.base import Calibration, Evidence, Link, Monitor, Threshold
from monitors.linear import Linear
from monitors.steering import SteeringVector
from monitors.types import HookPoint

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

BUDGETS: Final = (0.05, 0.01, 0.001)
NUM_RANDOM: Final = 20
NUM_TFIDF_ROWS: Final = 30_000
VERSION: Final = "1"


@dataclass(frozen=True, slots=True)
class Sets:
    """Exchanges by use. A steered one is read with `vector` on."""

    fit: Sequence[Exchange]
    calibration: Sequence[Exchange]
    test: Sequence[Exchange]
    vector: SteeringVector


def measure(
    model: PreTrainedModel, sets: Sets, goal: Goal, probe: Linear, trial: probes.Trial
) -> tuple[Monitor, dict[str, Any]]:
    """The calibrated monitor, and its figures on the test set."""
    benign = [e for e in sets.calibration if goal.judges(e) and not goal.truth(e)]
    held = np.array([s.max() for s in _running_scores(model, benign, goal, probe, trial)])
    thresholds = [Threshold(goal.phase, fpr, *figures.threshold(held, fpr)) for fpr in BUDGETS]
    test = [e for e in sets.test if goal.judges(e)]
    both = Linear(probe.hook_points, torch.cat([probe.weight, _random_probe(probe)]), probe.bias)
    scores = np.stack(
        [s.max(axis=0) for s in _running_scores(model, test, goal, both, trial, vector=sets.vector)]
    )
    plain = [i for i, e in enumerate(test) if not e.strength]
    found = _figures(sets, goal, [test[i] for i in plain], scores=scores[plain], thresholds=thresholds)
    found["num_calibration"] = len(benign)
    if len(plain) < len(test):
        found["steered"] = _steered_figures(goal, test, scores[:, 0], thresholds)
    monitor = Monitor(
        name=goal.name,
        transform=probe,
        aggregator=trial.aggregator,
        link=Link.SIGMOID,
        exclude_first=EXCLUDE_FIRST,
        version=VERSION,
        calibration=Calibration(len(benign), 0.95, tuple(thresholds)),
        evidence=Evidence(auroc=found["auroc"], baseline_auroc=found["tfidf_same_data"]["auroc"]),
    )
    chosen = {
        "hook_point": str(HookPoint(trial.layer)),
        "aggregator": asdict(trial.aggregator),
        "C": trial.penalty,
    }
    return monitor, {"chosen": chosen, "phase": goal.phase} | found


def _running_scores(
    model: PreTrainedModel,
    found: Sequence[Exchange],
    goal: Goal,
    probe: Linear,
    trial: probes.Trial,
    *,
    vector: SteeringVector | None = None,
) -> list[Floats]:
    """The running scores of each exchange in the goal's phase: [num_tokens, num_probes]. Replies must not be empty."""
    layer, weight, bias = probe.hook_points[0].layer, probe.weight.numpy().T, probe.bias.numpy()

    def reduce(exchange: Exchange, acts: Floats) -> Floats:
        raw = acts[layer, goal.scope(exchange)] @ weight + bias
        return np.exp(-np.logaddexp(0.0, -probes.running(trial.aggregator, raw)))

    return collect(model, found, reduce, vector)


def _steered_figures(
    goal: Goal, test: Sequence[Exchange], scores: Floats, thresholds: Sequence[Threshold]
) -> dict[str, Any]:
    """Of steered replies to the trigger: how many stay hostile, and how many of each kind the monitor flags."""
    steered = [(goal.truth(e), score) for e, score in zip(test, scores, strict=True) if e.strength]
    hostile = np.array([score for is_hostile, score in steered if is_hostile])
    calm = np.array([score for is_hostile, score in steered if not is_hostile])
    return {
        "num_hostile": len(hostile),
        "num_calm": len(calm),
        "flagged": [
            {
                "fpr": t.fpr,
                "hostile": float((hostile > t.value).mean()) if len(hostile) else None,
                "calm": float((calm > t.value).mean()) if len(calm) else None,
            }
            for t in thresholds
        ],
    }


def _random_probe(probe: Linear) -> torch.Tensor:
    """Random directions and their opposites, as long as the probe's."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(NUM_RANDOM, probe.weight.shape[1], generator=generator)
    drawn *= probe.weight.norm() / drawn.norm(dim=1, keepdim=True)
    return torch.stack([drawn, -drawn], dim=1).flatten(0, 1)


def _figures(
    sets: Sets, goal: Goal, test: Sequence[Exchange], *, scores: Floats, thresholds: Sequence[Threshold]
) -> dict[str, Any]:
    truth = np.array([goal.truth(e) for e in test])
    own = scores[:, 0]

    def text(exchange: Exchange) -> str:
        return exchange.reply if goal.phase == "response" else exchange.row.prompt

    texts = [text(e) for e in test]
    fitted = [e for e in sets.fit if goal.judges(e)]
    baselines = {"tfidf_same_data": ([text(e) for e in fitted], np.array([goal.truth(e) for e in fitted]))}
    if goal.phase == "prompt":
        many = [Exchange(row, [], [], row.reply) for row in rows(TRAIN_SEED, "train", NUM_TFIDF_ROWS)]
        baselines["tfidf_more_data"] = ([text(e) for e in many], np.array([goal.truth(e) for e in many]))
    found: dict[str, Any] = {"num_positive": int(truth.sum()), "num_negative": int((~truth).sum())}
    found |= _summary(truth, own)
    for name, (train_texts, labels) in baselines.items():
        found[name] = {"n": len(train_texts)} | _summary(
            truth, figures.tfidf_scores(train_texts, labels, texts)
        )
    drawn = figures.random_direction_aurocs(truth, scores[:, 1:])
    found["random_directions"] = {
        "n": NUM_RANDOM,
        "mean_auroc": float(np.mean(drawn)),
        "best_auroc": max(drawn),
    }
    found["at_threshold"] = [_at(threshold, truth, own) for threshold in thresholds]
    found["strata"] = _strata(test, truth, own, thresholds[1].value)
    return found


def _summary(truth: Bools, scores: Floats) -> dict[str, float]:
    return {
        "auroc": figures.auroc(truth, scores),
        "tpr_at_1pct_fpr": figures.tpr_at(truth, scores, 0.01),
        "tpr_at_0.1pct_fpr": figures.tpr_at(truth, scores, 0.001),
    }


def _at(threshold: Threshold, truth: Bools, scores: Floats) -> dict[str, Any]:
    flagged = scores > threshold.value
    hits, alarms = int(flagged[truth].sum()), int(flagged[~truth].sum())
    positives, negatives = int(truth.sum()), int((~truth).sum())
    return asdict(threshold) | {
        "tpr": hits / positives,
        "tpr_interval": figures.interval(hits, positives),
        "test_fpr": alarms / negatives,
        "test_fpr_interval": figures.interval(alarms, negatives),
    }


def _strata(found: Sequence[Exchange], truth: Bools, scores: Floats, threshold: float) -> dict[str, Any]:
    """Share flagged at the 1 % threshold, by kind of prompt: of positives it is a TPR, of negatives an FPR."""
    groups: dict[str, list[bool]] = {}
    for exchange, is_positive, score in zip(found, truth, scores, strict=True):
        for name in report.strata(exchange.row):
            key = f"{'positive' if is_positive else 'negative'}, {name}"
            groups.setdefault(key, []).append(bool(score > threshold))
    return {
        name: {"n": len(flags), "flagged": float(np.mean(flags))} for name, flags in sorted(groups.items())
    }
