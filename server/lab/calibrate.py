"""`interlock monitor calibrate`: thresholds by false-positive budget."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from server.lab import options
from server.lab.run import progress_bar, told

if TYPE_CHECKING:
    from monitors.lab.activations import Activations
    from monitors.lab.calibrating import Checked
    from monitors.lab.sections.calibration import PhaseCalibration, ThresholdPhase, Unit


def calibrate(
    folder: options.MonitorFolder,
    *,
    data: options.Data,
    fpr: Annotated[
        list[float] | None,
        typer.Option(
            "--fpr", help="A false-positive budget per request; may be repeated. Default: 0.05, 0.01, 0.001."
        ),
    ] = None,
    confidence: Annotated[
        float, typer.Option("--confidence", help="That a certified budget really holds.", min=0.5, max=0.9999)
    ] = 0.95,
    unlabelled_is_benign: Annotated[
        bool, typer.Option("--unlabelled-is-benign", help="Count examples without a label as benign traffic.")
    ] = False,
    unit: Annotated[
        str,
        typer.Option(
            "--unit",
            help="What was drawn independently. group: one request of each group counts. request: all count, although some "
            "share a group; say so only where traffic repeats its groups just as these examples do.",
        ),
    ] = "group",
    check: Annotated[
        list[Path] | None,
        typer.Option(
            "--check", help="Fresh benign examples to try the thresholds on.", exists=True, dir_okay=False
        ),
    ] = None,
    model: options.Model = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longer examples are cut.", min=1)] = 512,
    text_field: options.TextField = "text",
    label_field: options.LabelField = "label",
    group_field: options.GroupField = "group",
    positive: options.Positive = None,
    cache: options.Cache = options.DEFAULT_CACHE,
    seed: options.Seed = 0,
) -> None:
    """Find the score that at most a given share of benign requests exceeds, with a confidence bound.

    What counts is what the server decides on: the largest running score of a request. Use traffic like yours, not only hard
    cases: a threshold is as good as the requests that it was found on. A budget of 1 % takes 299 benign requests or
    more, 0.1 % takes 2,995; with fewer it is not certified, and no rule may block by it. Requests of one group (a template,
    a conversation) may score alike, so that one of each group counts.

    Prompts are calibrated on all examples, responses and conversations on those with a 'reply'. What these examples don't
    cover stays as it was calibrated before.

    Example: `interlock monitor calibrate monitors/harm --data benign.jsonl`. A policy then says
    `when: exceeds(prompt.harm, fpr=0.01)`.
    """
    with told():
        from monitors.artifacts.canary import write_canary  # noqa: PLC0415
        from monitors.lab.activations import collect  # noqa: PLC0415
        from monitors.lab.calibrating import BUDGETS, benign, num_seen  # noqa: PLC0415
        from monitors.lab.calibrating import calibrate as calibrated  # noqa: PLC0415
        from monitors.lab.calibrating import check as checked  # noqa: PLC0415
        from monitors.lab.canaries import make_canary  # noqa: PLC0415
        from monitors.lab.dataset import read_dataset  # noqa: PLC0415
        from server.lab.opened import Opened  # noqa: PLC0415

        for budget in fpr or ():
            if not 0 < budget < 1:
                raise ValueError(f"--fpr {budget}: a share between 0 and 1, such as 0.01")
        counted = _checked_unit(unit)
        columns = options.columns(text_field, label_field, group_field, positive)
        every = read_dataset(data, columns)
        examples = benign(every, unlabelled_is_benign=unlabelled_is_benign)
        others = (
            benign(read_dataset(check, columns), unlabelled_is_benign=unlabelled_is_benign) if check else ()
        )
        repeated = num_seen(others, examples)
        opened = Opened.read(folder, model, max_tokens)
        subject, monitor = opened.subject, opened.monitor
        with progress_bar("activations") as progress:
            acts = collect(subject, examples, monitor.hook_points, cache, progress=progress)
        monitor, section = calibrated(
            monitor, acts, budgets=fpr or BUDGETS, confidence=confidence, unit=counted, seed=seed
        )
        canary = make_canary(monitor, subject, opened.file.weights_sha256, seed=seed)
        fresh: tuple[Checked, ...] = ()
        if others:
            with progress_bar("fresh activations") as progress:
                fresh_acts = collect(subject, others, monitor.hook_points, cache, progress=progress)
            fresh = checked(monitor, fresh_acts, unit=counted, seed=seed)
        known = opened.card.calibration
        whole = (
            section.with_phases_of(known)
            if known and known.weights_sha256 == opened.file.weights_sha256
            else section
        )
        # last, so that a command which fails has changed nothing
        opened.write(monitor, whole)
        write_canary(canary, folder)
    if left_out := len(every) - len(examples):
        typer.echo(f"{left_out} of {len(every)} examples are not benign and were left out")
    if repeated:
        typer.echo(
            f"warning: {repeated} of {len(others)} fresh examples are also among those that were calibrated on",
            err=True,
        )
    covered = {part.phase for part in section.phases}
    _warn_of_missing_replies(acts, covered)
    for part in section.phases:
        _show(part, fresh)
    if any(part.drawn_from for part in section.phases):
        typer.echo("requests of one group may score alike, so that one of each counts (--unit)")
    for kept in (part for part in whole.phases if part.phase not in covered):
        typer.echo(f"the {kept.phase} stays as it was calibrated before")
        for found in (found for found in fresh if found.threshold.phase == kept.phase):
            typer.echo(f"fresh requests above its {found.threshold.fpr:.2%} threshold: {_beside(found)}")
    typer.echo(f"wrote {folder} (calibration in monitor.json, card.json, canary.json)")


def _warn_of_missing_replies(acts: "Activations", covered: "set[ThresholdPhase]") -> None:
    without = sum(not tokens.num_reply for tokens in acts.tokens)
    if 0 < without < len(acts.tokens):
        what = (
            "responses and conversations are calibrated on the others"
            if "response" in covered
            else "the others are too few to calibrate responses and conversations"
        )
        typer.echo(
            f"warning: {without} of {len(acts.tokens)} examples have no reply, or it was cut off (--max-tokens); {what}",
            err=True,
        )


def _checked_unit(unit: str) -> "Unit":
    match unit:
        case "group" | "request":
            return unit
        case _:
            raise ValueError(f"--unit {unit}: must be group or request")


def _beside(found: "Checked") -> str:
    rate, held = found.rate, "within the budget" if found.holds else "ABOVE THE BUDGET"
    return f"{rate.value:.2%} ({rate.low:.2%} to {rate.high:.2%}): {held}"


def _show(section: "PhaseCalibration", fresh: "tuple[Checked, ...]") -> None:
    drawn = f", one of each group of {section.drawn_from:,}" if section.drawn_from else ""
    table = Table(
        title=f"{section.phase}: {section.num_examples:,} benign requests{drawn}; confidence {section.confidence:.0%}"
    )
    for heading in ("budget", "threshold", "certified"):
        table.add_column(heading)
    if fresh:
        table.add_column("fresh requests above it (95 %)")
    rates = {found.threshold.fpr: found for found in fresh if found.threshold.phase == section.phase}
    what = "groups" if section.drawn_from else "benign requests"
    for budget in section.budgets:
        missing = budget.num_needed - section.num_examples
        told = "yes" if budget.certified else f"no: {missing:,} more {what} are needed"
        found = rates.get(budget.fpr)
        beside = _beside(found) if found else ""
        cells = [f"{budget.fpr:.2%}", f"{budget.threshold:.5g}", told]
        table.add_row(*cells, *([beside] if fresh else []))
    Console().print(table)
    for stratum in section.by_length:
        if stratum.fpr.low > stratum.budget:
            typer.echo(
                f"warning: {section.phase}s of {stratum.min_tokens} to {stratum.max_tokens} tokens exceed the {stratum.budget:.2%} "
                f"threshold in {stratum.fpr.value:.2%} of {stratum.num_requests}: the budget does not hold for them alone",
                err=True,
            )
