"""`interlock monitor eval`: how well a monitor separates, beside its baselines."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from server.lab import options
from server.lab.run import progress_bar, told

if TYPE_CHECKING:
    from monitors.lab.sections.evaluation import Compared, EvaluationSection, Figures


def evaluate(
    folder: options.MonitorFolder,
    *,
    data: options.Data,
    train: Annotated[
        list[Path] | None,
        typer.Option(
            "--train",
            help="What the monitor was fitted on: TF-IDF is fitted on it too. Default: TF-IDF out of fold on --data.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    phase: Annotated[
        str | None, typer.Option("--phase", help="prompt or response. Default: that of the fit.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the section of the card.")] = False,
    model: options.Model = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longer examples are cut.", min=1)] = 512,
    text_field: options.TextField = "text",
    label_field: options.LabelField = "label",
    group_field: options.GroupField = "group",
    positive: options.Positive = None,
    cache: options.Cache = options.DEFAULT_CACHE,
    seed: options.Seed = 0,
) -> None:
    """Measure a monitor on labelled examples that it was not fitted on.

    AUROC, the share of positives that are found at 1 % and 0.1 % false positives, by data set, and on each data set after
    fitting anew without it; TF-IDF on the same texts and random directions beside each figure.

    Example: `interlock monitor eval monitors/harm --data test.jsonl --train train.jsonl`
    """
    with told():
        from dataclasses import replace  # noqa: PLC0415

        from monitors.base import Evidence  # noqa: PLC0415
        from monitors.lab.activations import collect  # noqa: PLC0415
        from monitors.lab.card import CARD_FILE  # noqa: PLC0415
        from monitors.lab.dataset import read_dataset  # noqa: PLC0415
        from monitors.lab.evaluating import Trial  # noqa: PLC0415
        from monitors.lab.evaluating import evaluate as evaluated  # noqa: PLC0415
        from monitors.lab.fitting import check_labels, phase_of  # noqa: PLC0415
        from server.lab.fit import checked_phase  # noqa: PLC0415
        from server.lab.opened import Opened  # noqa: PLC0415

        columns = options.columns(text_field, label_field, group_field, positive)
        examples = read_dataset(data, columns)
        trained = read_dataset(train, columns) if train else None
        for some in (examples, trained or ()):
            if some:
                check_labels(some)
        opened = Opened.read(folder, model, max_tokens)
        subject, monitor, card = opened.subject, opened.monitor, opened.card
        points = monitor.hook_points
        with progress_bar("activations") as progress:
            acts = collect(subject, examples, points, cache, progress=progress)
        old_acts = None
        if trained:
            with progress_bar("training data") as progress:
                old_acts = collect(subject, trained, points, cache, progress=progress)
        trial = Trial(
            acts,
            checked_phase(phase) or (card.fit.recipe.phase if card.fit else phase_of(examples)),
            old_acts,
            opened.recipe(),
            card.fit.statistic if card.fit else "max",
            seed,
            card.fit.data_sha256 if card.fit else "",
        )
        section = evaluated(monitor, trial)
        whole = section.whole
        evidence = replace(
            monitor.evidence or Evidence(),
            auroc=round(whole.monitor.auroc.value, 4),
            baseline_auroc=round(whole.tfidf.auroc.value, 4) if whole.tfidf else None,
            card=CARD_FILE,
        )
        opened.write(replace(monitor, evidence=evidence), section)
    if trained:
        known = {e.content for e in trained}
        if repeated := sum(e.content in known for e in examples):
            typer.echo(
                f"warning: {repeated} of {len(examples)} examples are also in the training data: the figures are too good",
                err=True,
            )
    if as_json:
        typer.echo(section.model_dump_json(indent=2))
        return
    _show(section)
    typer.echo(f"wrote {folder} (card.json)")


def _show(section: "EvaluationSection") -> None:
    whole = section.whole
    table = Table(
        title=f"{whole.num_positive} positive, {whole.num_negative} negative; {section.phase}; "
        f"TF-IDF fitted on {section.tfidf_fitted_on}"
    )
    for heading in ("", "AUROC (95 %)", "TPR at 1 % FPR", "TPR at 0.1 % FPR"):
        table.add_column(heading)
    _rows(table, "", whole)
    for title, strata in (("", section.by_dataset), (", fitted without it", section.leave_one_dataset_out)):
        for stratum in strata:
            table.add_section()
            _rows(table, f"{stratum.name}{title}: ", stratum.compared)
    Console().print(table)
    if (told := section.probability) is not None:
        typer.echo(
            f"as probabilities ({told.method}, out of fold): Brier score {told.brier:.3f}, calibration error "
            f"{told.calibration_error:.1%}, where {told.base_rate:.1%} are positive"
        )


def _rows(table: Table, name: str, compared: "Compared") -> None:
    table.add_row(f"{name}monitor", *_figures(compared.monitor))
    if compared.tfidf is not None:
        table.add_row(f"{name}TF-IDF", *_figures(compared.tfidf))
    if (random := compared.random) is not None:
        told = f"mean {random.mean_auroc:.3f}, best {random.best_auroc:.3f}"
        table.add_row(f"{name}{random.num_directions} random directions", told, "", "")


def _figures(found: "Figures") -> tuple[str, str, str]:
    value = found.auroc
    at = {one.fpr: f"{one.tpr.value:.1%} ({one.tpr.low:.1%} to {one.tpr.high:.1%})" for one in found.at_fpr}
    few = "too few negatives"
    return f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})", at.get(0.01, few), at.get(0.001, few)
