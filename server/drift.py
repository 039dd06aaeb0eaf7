"""Drift of all monitors in force: fed at the end of each request, read at each scrape."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from guard.types import Phase
from monitors.base import Calibration, Monitor
from monitors.drift import Alarm, DriftReport, ScoreDrift
from monitors.norms import NormSummary
from monitors.types import HookPoint

_Key = tuple[str, Phase]


class DriftWatch:
    """One `ScoreDrift` per monitor and phase that a calibration has a reference for."""

    def __init__(self) -> None:
        self._scores: dict[_Key, ScoreDrift] = {}
        self._calibrations: dict[str, Calibration] = {}

    def install(self, monitors: Iterable[Monitor]) -> None:
        """These are in force now. Those whose calibration is the same go on as they were."""
        fresh = {m.name: m.calibration for m in monitors if m.calibration is not None}
        kept = {name for name, calibration in fresh.items() if self._calibrations.get(name) == calibration}
        self._scores = {key: drift for key, drift in self._scores.items() if key[0] in kept} | {
            (name, Phase(reference.phase)): ScoreDrift(
                reference, calibration.threshold(reference.phase, certified=True)
            )
            for name, calibration in fresh.items()
            if name not in kept
            for reference in calibration.references
        }
        self._calibrations = fresh

    def observe(self, name: str, phase: Phase, maximum: float) -> None:
        """The largest score of a phase of a request that has ended."""
        if drift := self._scores.get((name, phase)):
            drift.observe(maximum)

    def reports(self) -> Mapping[_Key, DriftReport]:
        return {key: drift.report() for key, drift in self._scores.items()}

    def norm_shifts(self, found: Mapping[HookPoint, NormSummary]) -> dict[str, float]:
        """By hook point: how far the mean of log ||x|| is from the calibration's, in its standard deviations.

        Where several monitors were calibrated at a point, the largest counts.
        """
        shifts: dict[str, float] = {}
        for calibration in self._calibrations.values():
            for norm in calibration.row_norms:
                summary = found.get(HookPoint.parse(norm.hook_point))
                if summary is not None:
                    shift = (summary.mean - norm.mean) / max(norm.std, 1e-6)
                    shifts[norm.hook_point] = max(shifts.get(norm.hook_point, 0.0), shift, key=abs)
        return shifts


class DriftCollector(Collector):
    """Drift as metrics, computed when they are scraped."""

    def __init__(self, watch: DriftWatch, row_norms: Callable[[], Mapping[HookPoint, NormSummary]]) -> None:
        self._watch = watch
        self._row_norms = row_norms

    def describe(self) -> Iterator[Metric]:
        """The names, so that registering asks for no value."""
        yield from (*self._families(), _norm_family())

    def collect(self) -> Iterator[Metric]:
        psi, ks, exceedance, evidence, alarm = self._families()
        for (name, phase), report in self._watch.reports().items():
            labels = [name, phase.value]
            if report.psi is not None:
                psi.add_metric(labels, report.psi)
            if report.ks_p_value is not None:
                ks.add_metric(labels, report.ks_p_value)
            if report.exceedance is not None:
                exceedance.add_metric(labels, report.exceedance)
            evidence.add_metric(labels, report.log_evidence / math.log(10))
            for kind in Alarm:
                alarm.add_metric([*labels, kind.value], float(kind in report.alarms))
        yield from (psi, ks, exceedance, evidence, alarm)
        norm = _norm_family()
        for point, shift in self._watch.norm_shifts(self._row_norms()).items():
            norm.add_metric([point], shift)
        yield norm

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, ...]:
        def family(name: str, text: str, *more: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"interlock_monitor_{name}", text, labels=["monitor", "scope", *more])

        return (
            family(
                "psi", "Population stability index of a request's highest score, against the calibration."
            ),
            family("ks_p_value", "Chance of a Kolmogorov-Smirnov distance as large as this without drift."),
            family("exceedance_ratio", "Share of the last 1,000 requests above the watched threshold."),
            family("drift_evidence", "log10 of the likelihood ratio for a raised exceedance rate (CUSUM)."),
            family("drift_alarm", "1 while scores are out of what the calibration allows.", "alarm"),
        )


def _norm_family() -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "interlock_residual_norm_shift",
        "Mean of log ||x|| at a hook point, in standard deviations from the calibration's. Beyond 2: another layer or model?",
        labels=["hook_point"],
    )
