"""The figures of a report. Each shows the monitor beside TF-IDF and random directions, where these were measured."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from monitors.lab.report.svg import Ink, draw
from monitors.lab.sections.base import Interval, RandomDirections
from monitors.lab.sections.calibration import PhaseCalibration
from monitors.lab.sections.causal import CausalSection, Effect
from monitors.lab.sections.evaluation import Compared, Stratum
from monitors.lab.sections.fit import Candidate, FitSection
from monitors.types import HookPoint

_MIN_FPR = 1e-3
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")


def layer_sweep(fit: FitSection) -> Markup:
    """The best candidate of each trainer at each layer, out of fold."""

    def plot(axes: Axes) -> None:
        _random_by_layer(axes, fit)
        tfidf = fit.tfidf_auroc
        axes.axhspan(tfidf.low, tfidf.high, color=Ink.TFIDF, alpha=0.12, linewidth=0)
        axes.axhline(tfidf.value, color=Ink.TFIDF, linestyle="--", label=f"TF-IDF {tfidf.value:.3f}")
        by_trainer = _best_by_layer(fit)
        for (trainer, best), marker in zip(by_trainer.items(), _cycle(len(by_trainer)), strict=True):
            layers = sorted(best)
            _errorbar(axes, layers, [best[layer].auroc for layer in layers], label=trainer, marker=marker)
        axes.set_xlabel("layer")
        axes.set_ylabel("AUROC, cross-validated")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y")
        _legend(axes)

    return draw(plot, "AUROC by layer, with TF-IDF and random directions")


def roc(compared: Compared) -> Markup:
    """True against false positives; the false ones on a logarithmic axis, where thresholds lie."""

    def plot(axes: Axes) -> None:
        _curve(
            axes, compared.monitor.roc, Ink.MONITOR, f"monitor, AUROC {compared.monitor.auroc.value:.3f}", "-"
        )
        if compared.tfidf is not None:
            _curve(axes, compared.tfidf.roc, Ink.TFIDF, f"TF-IDF, {compared.tfidf.auroc.value:.3f}", "--")
        if compared.random is not None:
            _binormal_band(axes, compared.random)
        for budget in (0.01, 0.001):
            axes.axvline(budget, color=Ink.BUDGET, linewidth=1, linestyle=":")
        axes.set_xscale("log")
        axes.set_xlim(_MIN_FPR * 0.9, 1)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel(f"false-positive rate per request ({compared.num_negative} negatives)")
        axes.set_ylabel(f"true-positive rate ({compared.num_positive} positives)")
        axes.grid(visible=True)
        _legend(axes)

    return draw(plot, "ROC curve with a logarithmic false-positive axis", size=(7.2, 4.2))


def datasets(strata: Sequence[Stratum], title: str) -> Markup:
    """AUROC by data set: a dot-plot."""

    def plot(axes: Axes) -> None:
        for row, stratum in enumerate(strata):
            compared = stratum.compared
            if compared.random is not None:
                _random_span(axes, compared.random, row)
            if compared.tfidf is not None:
                _dot(axes, compared.tfidf.auroc, row + 0.14, Ink.TFIDF, "s")
            _dot(axes, compared.monitor.auroc, row - 0.14, Ink.MONITOR, "o")
        axes.set_yticks(range(len(strata)), [stratum.name for stratum in strata])
        axes.invert_yaxis()
        axes.set_xlabel("AUROC")
        axes.axvline(0.5, color=Ink.FAINT, linewidth=1)
        axes.grid(axis="x")

    return draw(plot, title, size=(7.2, 1.1 + 0.55 * len(strata)))


def benign_scores(calibration: PhaseCalibration) -> Markup:
    """How many benign requests exceed each score, with the thresholds."""
    quantiles = np.array(calibration.quantiles)
    share_above = 1 - np.linspace(0, 1, len(quantiles))

    def plot(axes: Axes) -> None:
        axes.step(quantiles, np.maximum(share_above, 1e-4), where="post", color=Ink.MONITOR)
        for budget in calibration.budgets:
            axes.axvline(
                budget.threshold, color=Ink.BUDGET, linestyle="-" if budget.certified else ":", linewidth=1.4
            )
            axes.annotate(
                f"{budget.fpr:.2%}{'' if budget.certified else ' (not certified)'}",
                (budget.threshold, budget.fpr),
                xytext=(-6, 6),
                textcoords="offset points",
                horizontalalignment="right",
                fontsize=9,
            )
        axes.set_yscale("log")
        axes.set_ylim(8e-5, 1.5)
        axes.set_xlabel(f"largest running score of a benign request, {calibration.phase}")
        axes.set_ylabel("share of requests above it")
        axes.grid(visible=True)

    return draw(plot, "Share of benign requests above each score, with the thresholds")


def fpr_by_length(calibration: PhaseCalibration) -> Markup:
    """The measured rate by length of the request, with the budget."""
    budgets = sorted({stratum.budget for stratum in calibration.by_length}, reverse=True)

    def plot(axes: Axes) -> None:
        names: list[str] = []
        for number, budget in enumerate(budgets):
            strata = [s for s in calibration.by_length if s.budget == budget]
            names = [f"{s.min_tokens} to {s.max_tokens}" for s in strata]
            where = [row + 0.2 * (number - (len(budgets) - 1) / 2) for row in range(len(strata))]
            marker = _MARKERS[number % len(_MARKERS)]
            _errorbar(
                axes, where, [s.fpr for s in strata], label=f"budget {budget:.2%}", marker=marker, line=""
            )
            axes.axhline(budget, color=Ink.BUDGET, linewidth=1, linestyle=":")
        axes.set_xticks(range(len(names)), names, rotation=30, horizontalalignment="right", fontsize=9)
        axes.set_yscale("symlog", linthresh=min(budgets, default=1e-3))
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"tokens of the {calibration.phase}")
        axes.set_ylabel("false-positive rate")
        axes.grid(axis="y")
        _legend(axes)

    return draw(plot, "False-positive rate by length of the request")


def read_out(causal: CausalSection) -> Markup:
    """What reads the concept as well as the monitor does."""
    read = causal.read
    rows: list[tuple[str, float, Ink]] = [
        ("TF-IDF", read.tfidf_auroc, Ink.TFIDF),
        ("length alone", read.length_auroc, Ink.TFIDF),
        ("first layer", read.first_layer_auroc, Ink.TFIDF),
    ]
    if read.paraphrased_auroc is not None:
        rows.insert(0, ("monitor, in other words", read.paraphrased_auroc, Ink.MONITOR))
    if read.masked_auroc is not None:
        rows.insert(0, ("monitor, telling text masked", read.masked_auroc, Ink.MONITOR))

    def plot(axes: Axes) -> None:
        _dot(axes, read.auroc, 0, Ink.MONITOR, "o")
        for row, (_, value, ink) in enumerate(rows, 1):
            axes.plot(value, row, marker="s", color=ink, linestyle="")
        end = len(rows) + 1
        _random_span(axes, read.random, end)
        axes.plot(read.sham_aurocs, [end + 1] * len(read.sham_aurocs), "|", color=Ink.RANDOM, markersize=12)
        labels = ["monitor", *(name for name, _, _ in rows), "random directions", "shuffled labels"]
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.axvline(0.5, color=Ink.FAINT, linewidth=1)
        axes.set_xlabel("AUROC")
        axes.grid(axis="x")

    return draw(plot, "AUROC of the monitor beside its baselines", size=(7.2, 3.4))


def effects(causal: CausalSection) -> Markup:
    """Necessity and sufficiency against what null edits do."""
    named = [("necessity", e) for e in causal.necessity] + [("sufficiency", e) for e in causal.sufficiency]

    def plot(axes: Axes) -> None:
        for row, (_, effect) in enumerate(named):
            axes.plot(
                [effect.null_low, effect.null_high], [row, row], color=Ink.RANDOM, linewidth=9, alpha=0.55
            )
            _dot(axes, effect.effect, row, Ink.MONITOR, "o")
        axes.set_yticks(range(len(named)), [_effect_name(name, effect) for name, effect in named])
        axes.invert_yaxis()
        axes.axvline(0, color=Ink.FAINT, linewidth=1)
        axes.axvline(1, color=Ink.FAINT, linewidth=1, linestyle=":")
        axes.set_xlabel("effect, in differences between the classes")
        axes.grid(axis="x")

    return draw(plot, "Necessity and sufficiency beside null edits", size=(7.2, 1.2 + 0.6 * len(named)))


def dose_response(causal: CausalSection) -> Markup:
    """Behaviour against dose."""

    def plot(axes: Axes) -> None:
        doses = [dose.dose for dose in causal.doses]
        _errorbar(axes, doses, [dose.effect for dose in causal.doses], label="effect", marker="o")
        axes.axhline(0, color=Ink.FAINT, linewidth=1)
        axes.axvline(0, color=Ink.FAINT, linewidth=1)
        axes.set_xlabel("dose, in distances between the class means")
        axes.set_ylabel("change of behaviour")
        axes.grid(visible=True)

    return draw(plot, "Change of behaviour by dose")


def _best_by_layer(fit: FitSection) -> dict[str, dict[int, Candidate]]:
    """By trainer and layer; a candidate that reads several hook points stands at its last one."""
    best: dict[str, dict[int, Candidate]] = {}
    for candidate in fit.candidates:
        points = candidate.recipe.hook_points
        layer = max(HookPoint.parse(point).layer for point in points)
        name = candidate.recipe.trainer.replace("_", " ")
        own = best.setdefault(name, {})
        if layer not in own or candidate.auroc.value > own[layer].auroc.value:
            own[layer] = candidate
    return best


def _random_by_layer(axes: Axes, fit: FitSection) -> None:
    if not fit.random:
        return
    by_layer = sorted((HookPoint.parse(one.hook_point).layer, one.random) for one in fit.random)
    layers = [layer for layer, _ in by_layer]
    low = [found.mean_auroc for _, found in by_layer]
    high = [found.p95_auroc for _, found in by_layer]
    axes.fill_between(
        layers,
        low,
        high,
        color=Ink.RANDOM,
        alpha=0.35,
        linewidth=0,
        label="random directions, mean to 95th percentile",
    )


def _binormal_band(axes: Axes, random: RandomDirections) -> None:
    """The band between the curves that the mean and the best AUROC would have if scores were normal with equal variance."""
    from scipy.stats import norm  # noqa: PLC0415  only here

    fpr = np.geomspace(_MIN_FPR / 10, 1 - 1e-9, 200)
    low, high = (
        norm.cdf(norm.ppf(fpr) + np.sqrt(2) * norm.ppf(min(value, 1 - 1e-6)))
        for value in (random.mean_auroc, random.best_auroc)
    )
    label = f"random, mean {random.mean_auroc:.3f} to best {random.best_auroc:.3f}, if scores were normal"
    axes.fill_between(fpr, low, high, color=Ink.RANDOM, alpha=0.3, linewidth=0, label=label)


def _curve(axes: Axes, points: Sequence[tuple[float, float]], ink: Ink, label: str, line: str) -> None:
    if points:
        fpr, tpr = np.array(points).T
        axes.step(np.maximum(fpr, _MIN_FPR / 10), tpr, where="post", color=ink, linestyle=line, label=label)


def _legend(axes: Axes) -> None:
    """Above the plot, where it hides no data."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=9, ncols=2, borderaxespad=0.2)


def _errorbar(
    axes: Axes,
    where: Sequence[float],
    values: Sequence[Interval],
    *,
    label: str,
    marker: str,
    line: str = "-",
) -> None:
    middle = np.array([one.value for one in values])
    spread = np.array([[one.value - one.low, one.high - one.value] for one in values]).T.clip(min=0)
    axes.errorbar(
        where,
        middle,
        yerr=spread,
        color=Ink.MONITOR,
        marker=marker,
        markersize=5,
        capsize=2,
        linestyle=line,
        label=label,
    )


def _dot(axes: Axes, value: Interval, row: float, ink: Ink, marker: str) -> None:
    axes.plot([value.low, value.high], [row, row], color=ink, linewidth=1.6)
    axes.plot(value.value, row, marker=marker, color=ink, linestyle="", markersize=7)


def _random_span(axes: Axes, random: RandomDirections, row: float) -> None:
    axes.plot([random.mean_auroc, random.p95_auroc], [row, row], color=Ink.RANDOM, linewidth=9, alpha=0.55)
    axes.plot(random.best_auroc, row, "|", color=Ink.RANDOM, markersize=14)


def _effect_name(name: str, effect: Effect) -> str:
    return f"{name}, nulls of the same {'norm' if effect.matched_by == 'norm' else 'KL'}"


def _cycle(count: int) -> list[str]:
    return [_MARKERS[number % len(_MARKERS)] for number in range(count)]
