"""`interlock monitor report`: one HTML page about a monitor."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.lab import options
from server.lab.run import progress_bar, told

if TYPE_CHECKING:
    from monitors.lab.card import Card
    from monitors.lab.dataset import Example
    from monitors.lab.report import Reported
    from monitors.lab.sections.base import Phase


def report(
    folder: options.MonitorFolder,
    *,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write. Default: card.html beside monitor.json.")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data",
            help="Labelled examples to show token by token. The page then holds their TEXT: choose what may be shown.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    num_each: Annotated[
        int,
        typer.Option(
            "--examples", help="How many to show of each: caught, missed, false alarm, passed.", min=1, max=20
        ),
    ] = 2,
    model: options.Model = None,
    text_field: options.TextField = "text",
    label_field: options.LabelField = "label",
    group_field: options.GroupField = "group",
    positive: options.Positive = None,
    cache: options.Cache = options.DEFAULT_CACHE,
) -> None:
    """Write a page that says what a monitor may be used for, and why.

    It shows what the other commands found out (they keep it in card.json) and says what is missing. It is one file,
    loads nothing from the network, and holds no text of any example unless you give `--data`.

    Example: `interlock monitor report monitors/harm`, then open `monitors/harm/card.html` in a browser.
    """
    with told():
        from monitors.lab.card import REPORT_FILE  # noqa: PLC0415
        from monitors.lab.dataset import read_dataset  # noqa: PLC0415
        from monitors.lab.report import Reported, render  # noqa: PLC0415

        if data is None:
            reported = Reported.read(folder)
        else:
            columns = options.columns(text_field, label_field, group_field, positive)
            examples = [e for e in read_dataset(data, columns) if e.label is not None]
            if not examples:
                raise ValueError(f"{', '.join(map(str, data))}: no labelled examples; give some with 'label'")
            reported = _with_examples(folder, model, examples, cache, num_each)
        path = out or folder / REPORT_FILE
        path.write_text(render(reported, datetime.now(UTC)), encoding="utf-8")
    typer.echo(f"{reported.headline}\nwrote {path}")
    for step in reported.steps:
        if step.state != "done":
            typer.echo(f"{step.name}: {step.state}; run: {step.command}")


def _with_examples(
    folder: Path, model: str | None, examples: "list[Example]", cache: Path, num_each: int
) -> "Reported":
    """Scores the examples. Raises ValueError where nothing tells from which score on the monitor flags."""
    from monitors.lab.activations import collect  # noqa: PLC0415
    from monitors.lab.report import Reported  # noqa: PLC0415
    from monitors.lab.report.heat import heat_examples  # noqa: PLC0415
    from server.lab.opened import Opened  # noqa: PLC0415

    opened = Opened.read(folder, model)
    subject, monitor = opened.subject, opened.monitor
    phase = phase_shown(opened.card)
    threshold = monitor.calibration.threshold(phase) if monitor.calibration else None
    if threshold is None:
        raise ValueError(
            f"{folder}: its {phase} is not calibrated, so that nothing tells what it would flag; run: "
            f"interlock monitor calibrate {folder} --data …"
        )
    with progress_bar("activations") as progress:
        acts = collect(subject, examples, monitor.hook_points, cache, progress=progress)
    if subject.token_texts is None:
        raise ValueError(f"{subject.name}: its tokens can't be shown as text")
    shown = heat_examples(monitor, acts, phase, threshold.value, subject.token_texts, num_each=num_each)
    return Reported.read(folder, shown, threshold.value)


def phase_shown(card: "Card") -> "Phase":
    """The one that the monitor was fitted for, or at least calibrated on."""
    if card.fit is not None:
        return card.fit.recipe.phase
    return card.calibration.phase if card.calibration is not None else "prompt"
