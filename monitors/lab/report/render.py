"""From what is known about a monitor to one HTML file that needs nothing else."""

from collections.abc import Iterator
from datetime import datetime

import jinja2
from markupsafe import Markup

from monitors.lab.report import figures
from monitors.lab.report.view import Reported
from monitors.lab.sections.base import Interval
from monitors.lab.sections.calibration import CalibrationSection
from monitors.lab.sections.causal import CausalSection
from monitors.lab.sections.evaluation import EvaluationSection


def render(reported: Reported, made: datetime) -> str:
    """The page. Whatever comes from data (names, texts) is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("monitors.lab.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"interval": _interval, "percent": _percent, "percents": _percents}
    page = environment.get_template("page.html.jinja")
    return page.render(r=reported, m=reported.monitor, card=reported.card, svg=_figures(reported), made=made)


def _figures(reported: Reported) -> dict[str, Markup]:
    """Of those sections that are there."""
    card = reported.card
    found: dict[str, Markup] = {}
    if card.fit is not None:
        found["sweep"] = figures.layer_sweep(card.fit)
    if card.evaluation is not None:
        found.update(_of_evaluation(card.evaluation))
    if card.calibration is not None:
        found.update(_of_calibration(card.calibration))
    if card.causal is not None:
        found.update(_of_causal(card.causal))
    return found


def _of_evaluation(evaluation: EvaluationSection) -> Iterator[tuple[str, Markup]]:
    yield "roc", figures.roc(evaluation.whole)
    if evaluation.by_dataset:
        yield "by_dataset", figures.datasets(evaluation.by_dataset, "AUROC by data set")
    if evaluation.leave_one_dataset_out:
        title = "AUROC on each data set, fitted without it"
        yield "left_out", figures.datasets(evaluation.leave_one_dataset_out, title)


def _of_calibration(calibration: CalibrationSection) -> Iterator[tuple[str, Markup]]:
    for part in calibration.phases:
        if part.quantiles:
            yield f"benign_{part.phase}", figures.benign_scores(part)
        if part.by_length:
            yield f"by_length_{part.phase}", figures.fpr_by_length(part)


def _of_causal(causal: CausalSection) -> Iterator[tuple[str, Markup]]:
    yield "read", figures.read_out(causal)
    if causal.necessity or causal.sufficiency:
        yield "effects", figures.effects(causal)
    if causal.doses:
        yield "doses", figures.dose_response(causal)


def _interval(value: Interval, digits: int = 3) -> str:
    return f"{value.value:.{digits}f} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def _percent(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}%}".replace("%", " %")


def _percents(value: Interval) -> str:
    return f"{_percent(value.value)} ({_percent(value.low)} to {_percent(value.high)})"
