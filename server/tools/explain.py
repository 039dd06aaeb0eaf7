"""`interlock policy explain`: rules in plain words, and token by token on given scores."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from guard.errors import Problem, did_you_mean
from guard.explain import explain
from guard.policy import Policy
from guard.replay import replay
from guard.rules import Rule
from guard.scope import Match
from guard.series import parse_series
from guard.trace import TraceRow, trace
from guard.types import Outcome, Phase, Score, Subject
from server.tools.loading import load_all
from server.tools.report import ExitCode, Report

Series = Mapping[Phase, Mapping[str, Sequence[Score]]]


def read_scores(options: Sequence[str]) -> Series:
    """`prompt.harm=0.1x4,0.9` and so on. Raises ValueError."""
    series: dict[Phase, dict[str, Sequence[Score]]] = {phase: {} for phase in Phase}
    for option in options:
        name, equals, text = option.partition("=")
        scope, dot, monitor = name.strip().partition(".")
        if not (equals and dot and monitor) or scope not in set(Phase):
            raise ValueError(f"'{option}': write for example prompt.harm=0.1x4,0.9 or response.harm=0.2x8")
        series[Phase(scope)][monitor] = parse_series(text.replace(",", " "))
    for phase, by_name in series.items():
        if len({len(values) for values in by_name.values()}) > 1:
            told = ", ".join(f"{name} has {len(values)}" for name, values in by_name.items())
            raise ValueError(f"the {phase} series differ in length: {told} tokens")
    return series


def explain_policy(path: Path, rule_id: str | None, series: Series, now: datetime) -> Report:
    loaded = load_all([path])
    if not loaded.ok:
        return Report("explain", data={"rules": []}, problems=loaded.problems, code=ExitCode.ERRORS)
    ((_, policy),) = loaded.policies
    rules = [rule for rule in policy.rules if rule_id in {None, rule.id}]
    if not rules:
        known = [rule.id for rule in policy.rules]
        message = f"no rule is called '{rule_id}'" if rule_id else "there are no rules"
        problem = Problem(str(path), 1, 1, "unknown-rule", message, did_you_mean(rule_id or "", known))
        return Report("explain", data={"rules": []}, problems=(problem,), code=ExitCode.USAGE)
    explained = [explain(policy, rule, now) for rule in rules]
    blocks = [str(explanation) for explanation in explained]
    data: dict[str, Any] = {
        "policy": str(policy),
        "rules": [
            {
                "rule": e.rule,
                "head": e.head,
                "lines": [{"label": label, "text": text} for label, text in e.lines],
            }
            for e in explained
        ],
    }
    if any(series.values()):
        rows, outcome = trace(rules, series), _outcome(policy, rules, series, now)
        blocks.append(f"{_table(rows)}\n{_told(outcome)}")
        data["trace"] = {"rows": [_row(row) for row in rows], "outcome": _told(outcome)}
    return Report("explain", "\n\n".join(blocks), data)


def _outcome(policy: Policy, rules: Sequence[Rule], series: Series, now: datetime) -> Outcome:
    """What these rules alone decide for someone to whom they apply. Monitors that were not given are silent."""
    applied = tuple(replace(rule, match=Match(), rollout=None) for rule in rules)
    whole: dict[Phase, dict[str, Sequence[Score]]] = {}
    for phase, by_name in series.items():
        silent = (None,) * max(map(len, by_name.values()), default=0)
        read = {name for rule in rules for of, name in rule.reads if of is phase}
        whole[phase] = {**dict.fromkeys(read, silent), **by_name}
    alone = replace(policy, rules=applied, waivers=())
    return replay(alone, Subject(), whole[Phase.PROMPT], whole[Phase.RESPONSE], now)


def _told(outcome: Outcome) -> str:
    matches = [*outcome.matches, *outcome.shadow]
    told = ", ".join(f"{m.rule} ({m.mode}) at {m.phase} token {m.token}" for m in matches)
    return f"outcome: {outcome.verdict}" + (f"; matched: {told}" if told else "; nothing matched")


def _row(row: TraceRow) -> dict[str, Any]:
    return {
        "phase": row.phase.value,
        "token": row.token,
        "scores": {name: None if score is None else _shown(score) for name, score in row.scores.items()},
        "values": {text: None if value is None else _shown(value) for text, value in row.values.items()},
        "verdicts": dict(row.verdicts),
    }


def _shown(number: float) -> float | str:
    """JSON has no NaN."""
    return number if number - number == 0 else str(number)


def _table(rows: Sequence[TraceRow]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    calls = list(rows[0].values) if rows else []
    rules = list(rows[0].verdicts) if rows else []
    lines = [["phase", "token", *names, *calls, *rules]]
    lines += [
        [
            row.phase.value,
            str(row.token),
            *(_cell(row.scores[name], "-") if name in row.scores else "" for name in names),
            *(_cell(row.values[call], "unknown") for call in calls),
            *(row.verdicts[rule] for rule in rules),
        ]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cell(number: float | None, none: str) -> str:
    return none if number is None else f"{number:.6g}"
