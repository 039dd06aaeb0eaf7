"""Writes dashboards/*.json. `python -m deploy.grafana.generate`"""
# ruff: noqa: FBT003  # the SDK sets booleans so

import json
from pathlib import Path
from typing import Any, Final

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import GraphThresholdsStyleMode, StackingMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    GridPos,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)

from deploy.grafana.boards import BOARDS, Board, Panel, Query

OUT: Final = Path(__file__).parent / "dashboards"
SELECTED: Final = 'job=~"$job", instance=~"$instance"'
_SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
_HEIGHT = 8
_STAT_HEIGHT = 5
_VALUES = {
    "job": "label_values(interlock_build_info, job)",
    "instance": 'label_values(interlock_build_info{job=~"$job"}, instance)',
    "monitor": 'label_values(interlock_monitor_tokens_scored_total{job=~"$job"}, monitor)',
    "rule": 'label_values(interlock_rule_matches_total{job=~"$job"}, rule)',
}


def text(board: Board) -> str:
    """A dashboard as Grafana reads it."""
    built = _board(board).build()
    made: dict[str, Any] = json.loads(json.dumps(built, cls=JSONEncoder))
    made["schemaVersion"] = 41
    return json.dumps(made, indent=1, sort_keys=True) + "\n"


def expression(query: Query, window: str = "$__rate_interval", selected: str = SELECTED) -> str:
    """A query, ready to be asked."""
    return query.expr.replace("$S", selected).replace("$W", window)


def _board(board: Board) -> dashboard.Dashboard:
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["interlock"])
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("browser")
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .link(
            dashboard.DashboardLink("Interlock")
            .tags(["interlock"])
            .as_dropdown(True)
            .keep_time(True)
            .include_vars(True)
        )
        .annotation(
            _annotation(
                "Policy reloaded",
                f"changes(interlock_policy_last_reload_success_timestamp_seconds{{{SELECTED}}}[$__rate_interval]) > 0",
                "blue",
            )
        )
        .annotation(_annotation("Alerts", 'ALERTS{alertname=~"Interlock.*", alertstate="firing"}', "red"))
    )
    for name in ("job", "instance", *board.picks):
        made = made.with_variable(_variable(name))
    y, number = 0, 1
    for row in board.rows:
        made = made.with_row(dashboard.Row(row.title).id(number).grid_pos(GridPos(h=1, w=24, x=0, y=y)))
        x, y, height = 0, y + 1, 0
        number += 1
        for panel in row.panels:
            if x + panel.width > 24:  # Grafana's columns
                x, y = 0, y + height
            height = _STAT_HEIGHT if panel.kind == "stat" else _HEIGHT
            made = made.with_panel(
                _panel(panel).id(number).grid_pos(GridPos(h=height, w=panel.width, x=x, y=y))
            )
            x += panel.width
            number += 1
        y += height
    return made


def _variable(name: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(_SOURCE)
        .query(_VALUES[name])
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .include_all(True)
        .all_value(".*")
        .multi(True)
        .current({"selected": True, "text": ["All"], "value": ["$__all"]})
    )


def _annotation(name: str, expr: str, color: str) -> dashboard.AnnotationQuery:
    return (
        dashboard.AnnotationQuery().name(name).datasource(_SOURCE).enable(True).icon_color(color).expr(expr)
    )


def _panel(panel: Panel) -> Any:
    made: Any
    match panel.kind:
        case "stat":
            made = stat.Panel().thresholds(_thresholds(panel))
        case "heatmap":
            made = heatmap.Panel()
        case "timeseries":
            made = (
                timeseries.Panel()
                .thresholds(_thresholds(panel))
                .min(0)
                .fill_opacity(30 if panel.stack else 0)
            )
            if panel.stack:
                made = made.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
            if panel.red_above is not None or panel.red_below is not None:
                dashed = common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
                made = made.thresholds_style(dashed)
    made = made.title(panel.title).description(panel.description).unit(panel.unit).datasource(_SOURCE)
    for index, query in enumerate(panel.queries):
        asked = (
            prometheus.Dataquery()
            .expr(expression(query))
            .legend_format(query.legend or "__auto")
            .ref_id(chr(ord("A") + index))
        )
        made = made.with_target(asked.format("heatmap") if panel.kind == "heatmap" else asked)
    return made


def _thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    """Where the alert fires: the same numbers as in the rules."""
    steps = [Threshold(value=None, color="green")]
    if panel.red_above is not None:
        steps.append(Threshold(value=panel.red_above, color="red"))
    if panel.red_below is not None:
        steps = [Threshold(value=None, color="red"), Threshold(value=panel.red_below, color="green")]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def main() -> None:
    for board in BOARDS:
        (OUT / f"{board.uid}.json").write_text(text(board))


if __name__ == "__main__":
    main()
