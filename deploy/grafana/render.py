"""Draws the dashboards from what a Prometheus answers to their queries, for people who have no Grafana at hand.

    python -m deploy.grafana.render --prometheus http://127.0.0.1:9090 --minutes 15 --out docs/dashboards

Needs the extra `lab` (matplotlib). It shows what the panels show, not how Grafana looks.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Self

import httpx

from deploy.grafana.boards import BOARDS, Board, Panel, Row
from deploy.grafana.generate import expression

_STEPS = 120  # points of a curve
_LEGEND = 8  # lines at most


@dataclass(frozen=True, slots=True)
class Curve:
    """One series of an answer."""

    name: str
    times: tuple[float, ...]  # Unix seconds
    values: tuple[float, ...]


class Prometheus:
    """Asked for what panels show."""

    def __init__(self, url: str, *, start: float, end: float, window: str) -> None:
        """`window` stands for Grafana's `$__rate_interval`."""
        self._client = httpx.Client(base_url=url, timeout=30)
        self._span = {"start": start, "end": end, "step": max(1.0, (end - start) / _STEPS)}
        self._window = window

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def curves(self, panel: Panel) -> list[Curve]:
        """Raises httpx.HTTPStatusError for a query that Prometheus does not understand."""
        return [
            curve
            for query in panel.queries
            for curve in self._ask(expression(query, self._window, 'job=~".*"'), query.legend)
        ]

    def _ask(self, expr: str, legend: str) -> list[Curve]:
        expr = expr.replace("$monitor", ".*").replace("$rule", ".*")
        answer = self._client.get(
            "/api/v1/query_range", params={"query": expr, **self._span}
        ).raise_for_status()
        return [
            Curve(
                _named(legend, series["metric"]),
                *zip(*((float(t), float(v)) for t, v in series["values"]), strict=True),
            )
            for series in answer.json()["data"]["result"]
        ]


def _named(legend: str, labels: dict[str, str]) -> str:
    for name, value in labels.items():
        legend = legend.replace(f"{{{{{name}}}}}", value)
    return legend


def draw(board: Board, curves: dict[str, Sequence[Curve]], path: Path) -> None:
    """All panels of a board into one image. curves: by the panel's title."""
    from matplotlib import pyplot as plt  # noqa: PLC0415  # an optional extra

    lines = [line for row in board.rows for line in _lines(row)]
    figure = plt.figure(figsize=(18, 3.1 * len(lines)), layout="constrained")
    figure.suptitle(f"{board.title}: {board.description}", fontsize=13)
    for bands, line in zip(figure.subfigures(len(lines), 1, squeeze=False), lines, strict=True):
        axes = bands[0].subplots(1, len(line), squeeze=False, width_ratios=[panel.width for panel in line])[0]
        for axis, panel in zip(axes, line, strict=True):
            _draw(axis, panel, curves[panel.title])
    figure.savefig(path, dpi=70)
    plt.close(figure)


def _lines(row: Row) -> list[list[Panel]]:
    lines: list[list[Panel]] = [[]]
    for panel in row.panels:
        if sum(p.width for p in lines[-1]) + panel.width > 24:  # Grafana's columns
            lines.append([])
        lines[-1].append(panel)
    return lines


def _draw(axis: Any, panel: Panel, curves: Sequence[Curve]) -> None:
    axis.set_title(f"{panel.title} [{panel.unit}]", fontsize=9)
    axis.tick_params(labelsize=7)
    drawn = [curve for curve in curves if any(map(isfinite, curve.values))]
    if panel.kind == "stat":
        axis.axis("off")
        told = "\n".join(f"{curve.values[-1]:.4g}" for curve in drawn) or "no data"
        axis.text(0.5, 0.5, told, ha="center", va="center", fontsize=22)
        return
    first = min((curve.times[0] for curve in drawn), default=0.0)
    for index, curve in enumerate(drawn):
        minutes = [(at - first) / 60 for at in curve.times]
        axis.plot(minutes, curve.values, linewidth=1, label=curve.name if index < _LEGEND else None)
    for limit in (panel.red_above, panel.red_below):
        if limit is not None:
            axis.axhline(limit, color="red", linestyle="--", linewidth=0.8)
    if drawn:
        axis.legend(fontsize=6, loc="upper left")
    axis.set_xlabel("minutes", fontsize=7)


def main() -> None:
    args = _parser().parse_args()
    now = time.time()  # noqa: TID251  # what Prometheus goes by
    args.out.mkdir(parents=True, exist_ok=True)
    with Prometheus(
        args.prometheus, start=now - args.minutes * 60, end=now, window=args.window
    ) as prometheus:
        for board in BOARDS:
            curves = {panel.title: prometheus.curves(panel) for row in board.rows for panel in row.panels}
            path = args.out / f"{board.uid}.png"
            draw(board, curves, path)
            print(f"{path}: {sum(map(bool, curves.values()))} of {len(curves)} panels with data")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.grafana.render", description="Draw the dashboards."
    )
    parser.add_argument(
        "--prometheus", default="http://127.0.0.1:9090", help="its address (default: %(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=15, help="back from now (default: %(default)s)")
    parser.add_argument("--window", default="1m", help="of rates (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/dashboards"), help="folder (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    main()
