"""`interlock monitor inspect`: what a monitor is, and what it says of one example."""

import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.lab import options
from server.lab.run import told

if TYPE_CHECKING:
    from monitors.artifacts.files import MonitorFile
    from monitors.base import Calibration, Threshold
    from monitors.lab.dataset import Example
    from monitors.lab.report import Reported
    from server.lab.opened import Opened

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
    base_rate: Annotated[
        float | None,
        typer.Option(
            "--base-rate",
            help="The share of requests in production that are positive, to tell probabilities by. Default: that of the "
            "examples that the probability was fitted on.",
        ),
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

        if base_rate is not None and not 0 < base_rate < 1:
            raise ValueError(f"--base-rate {base_rate}: a share between 0 and 1, such as 0.001")
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
            from server.lab.opened import Opened  # noqa: PLC0415

            _score(console, Opened.read(folder, model), chosen[0], cache, base_rate)


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
    told = f"confidence {calibration.confidence:.0%}"
    return [("calibration", told)] + [
        ("", f"{t.phase} at {t.fpr:.2%}: above {t.value:.6g}, {_certified(calibration, t)}")
        for t in calibration.thresholds
    ]


def _certified(calibration: "Calibration", threshold: "Threshold") -> str:
    on = f"{calibration.num_requests_of(threshold):,} benign requests"
    return f"certified by {on}" if threshold.certified else f"not certified by {on}"


def _score(
    console: Console, opened: "Opened", example: "Example", cache: Path, base_rate: float | None
) -> None:
    from monitors.lab.activations import collect  # noqa: PLC0415
    from monitors.lab.scoring import Scorer  # noqa: PLC0415

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
            if likely := _likely(opened, phase, scores, base_rate):
                console.print(likely)
            if not console.is_terminal:
                for text, score in zip(own, scores, strict=True):
                    console.print(f"{score:12.5g}  {text!r}", markup=False)


def _likely(opened: "Opened", phase: str, scores: Sequence[float], base_rate: float | None) -> str:
    """A request's score as a probability; empty if no map was fitted for this phase."""
    from monitors.lab.probability import log_odds, probabilities  # noqa: PLC0415

    fit, evaluation = opened.card.fit, opened.card.evaluation
    maps = [e.probability for e in (evaluation,) if e and e.phase == phase]
    maps += [f.probability for f in (fit,) if f and f.recipe.phase == phase]
    found = next(filter(None, maps), None)
    if found is None:
        return ""
    score = scores[-1] if fit and fit.statistic == "last" else max(scores)
    odds = log_odds(np.array([score]), opened.monitor.link)
    rate = found.base_rate if base_rate is None else base_rate
    return f"positive with a probability of {probabilities(found, odds, rate)[0]:.1%}, where {rate:.2%} of requests are"


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
