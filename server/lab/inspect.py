"""`interlock monitor inspect`: what a monitor is, and what it says of one example."""

import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.lab import options
from server.lab.run import told

if TYPE_CHECKING:
    from monitors.artifacts.files import MonitorFile
    from monitors.base import Calibration
    from monitors.lab.dataset import Example
    from monitors.lab.report import Reported

_WARM = ("", "on grey23", "on orange4", "on dark_orange3", "on red3")


def inspect(
    folder: options.MonitorFolder,
    *,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data", help="Examples to score one of. Its TEXT is printed.", exists=True, dir_okay=False
        ),
    ] = None,
    example: Annotated[
        str | None, typer.Option("--example", help="The id of the example. Default: the first.")
    ] = None,
    model: options.Model = None,
    text_field: options.TextField = "text",
    label_field: options.LabelField = "label",
    group_field: options.GroupField = "group",
    cache: options.Cache = options.DEFAULT_CACHE,
) -> None:
    """Show what a monitor reads, how it was calibrated, what it may be used for, and what is missing.

    That needs no model. With `--data`, its running score after each token of one example is shown as well.

    Example: `interlock monitor inspect monitors/harm --data test.jsonl --example test:12`
    """
    with told():
        from monitors.lab.report import Reported  # noqa: PLC0415

        reported = Reported.read(folder)
        console = Console(highlight=False)
        _describe(console, reported)
        if data is not None:
            from monitors.lab.dataset import read_dataset  # noqa: PLC0415

            examples = read_dataset(data, options.columns(text_field, label_field, group_field))
            chosen = [one for one in examples if example in {None, one.id}][:1]
            if not chosen:
                raise ValueError(
                    f"no example has the id {example!r}; the first is {examples[0].id!r}, the last {examples[-1].id!r}"
                )
            _score(console, folder, model, chosen[0], cache)


def _describe(console: Console, reported: "Reported") -> None:
    monitor = reported.monitor
    table = Table.grid(padding=(0, 2))
    for name, value in _facts(monitor):
        table.add_row(name, Text(value))
    console.print(table)
    console.print()
    for use in reported.uses:
        may = "may    " if use.allowed else "may not"
        console.print(f"{may}  {use.action}: {use.why}", soft_wrap=True, markup=False)
    for step in reported.steps:
        if step.state != "done":
            console.print(f"{step.state}  {step.name}: {step.command}", soft_wrap=True, markup=False)


def _facts(monitor: "MonitorFile") -> "list[tuple[str, str]]":
    run = monitor.aggregator.run
    parameters = {key: value for key, value in run.model_dump(exclude={"kind"}).items() if value is not None}
    aggregator = f"{run.kind} {', '.join(f'{key} {value}' for key, value in parameters.items())}".strip()
    fitted = f"; fitted with {monitor.aggregator.train.kind}" if monitor.aggregator.train else ""
    facts = [
        ("monitor", f"{monitor.name}, version {monitor.version}"),
        ("kind", monitor.kind),
        ("reads", ", ".join(monitor.hook_points)),
        ("score", f"{monitor.link} of {aggregator}{fitted}"),
        ("model", monitor.model.fingerprint),
        ("weights", monitor.weights_sha256),
    ]
    if monitor.token_scope.exclude_first:
        facts.append(("scope", f"without the first {monitor.token_scope.exclude_first} tokens of the prompt"))
    if (evidence := monitor.evidence) is not None:
        auroc = "not measured" if evidence.auroc is None else f"{evidence.auroc:.3f}"
        words = "not measured" if evidence.baseline_auroc is None else f"{evidence.baseline_auroc:.3f}"
        facts.append(
            ("evidence", f"AUROC {auroc}, TF-IDF {words}; causal verdict: {evidence.verdict or 'none'}")
        )
    return [*facts, *_thresholds(monitor.calibration)]


def _thresholds(calibration: "Calibration | None") -> "list[tuple[str, str]]":
    if calibration is None:
        return [("calibration", "none")]
    told = f"{calibration.num_requests} benign requests, confidence {calibration.confidence:.0%}"
    return [("calibration", told)] + [
        ("", f"{t.phase} at {t.fpr:.2%}: above {t.value:.6g}{'' if t.certified else ', not certified'}")
        for t in calibration.thresholds
    ]


def _score(console: Console, folder: Path, model: str | None, example: "Example", cache: Path) -> None:
    from monitors.lab.activations import collect  # noqa: PLC0415
    from monitors.lab.scoring import Scorer  # noqa: PLC0415
    from server.lab.opened import Opened  # noqa: PLC0415

    opened = Opened.read(folder, model)
    subject, monitor = opened.subject, opened.monitor
    acts = collect(subject, [example], monitor.hook_points, cache)
    (tokens,) = acts.tokens
    texts = subject.token_texts(tokens.ids) if subject.token_texts else [str(token) for token in tokens.ids]
    running = Scorer([monitor]).running(acts, 0)
    for phase, own in (("prompt", texts[: tokens.num_prompt]), ("response", texts[tokens.num_prompt :])):
        scores = running["prompt" if phase == "prompt" else "response"][:, 0].tolist()
        if scores:
            threshold = monitor.calibration.threshold(phase) if monitor.calibration else None
            console.print(
                f"\n{phase} of {example.id}: running score, largest {max(scores):.4g}", markup=False
            )
            console.print(_heat(own, scores))
            if threshold is not None:
                first = next((i for i, score in enumerate(scores) if score > threshold.value), None)
                where = "never" if first is None else f"first at token {first + 1} of {len(scores)}"
                console.print(f"above {threshold.value:.4g} (the {threshold.fpr:.2%} threshold): {where}")
            if not console.is_terminal:
                for text, score in zip(own, scores, strict=True):
                    console.print(f"{score:12.5g}  {text!r}", markup=False)


def _printable(text: str) -> str:
    """Without what would steer the terminal: texts to judge monitors by are often written by an adversary."""
    return "".join(
        c
        if c in "\n\t" or unicodedata.category(c) not in {"Cc", "Cf"}
        else c.encode("unicode_escape").decode()
        for c in text
    )


def _heat(texts: Sequence[str], scores: Sequence[float]) -> Text:
    """Tokens on warmer ground the higher their score among these."""
    finite = sorted(score for score in scores if math.isfinite(score))
    low, high = (finite[0], finite[-1]) if finite else (0.0, 0.0)
    shown = Text()
    for text, score in zip(texts, scores, strict=True):
        share = (score - low) / (high - low) if high > low and math.isfinite(score) else 0.0
        shown.append(_printable(text), style=_WARM[min(int(share * len(_WARM)), len(_WARM) - 1)])
    return shown
