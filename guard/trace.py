"""Rules on given series, token by token: every aggregate and every verdict, as a decider has them, for `explain`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from guard.conditions import Aggregates, Verdict, compile_condition
from guard.rules import Rule
from guard.types import Phase, Score


@dataclass(frozen=True, slots=True)
class TraceRow:
    """After one token. A verdict is true, false, unknown, or `error` from a broken score on."""

    phase: Phase
    token: int
    scores: Mapping[str, Score]  # by series, of this phase
    values: Mapping[str, float | None]  # by the text of the call
    verdicts: Mapping[str, str]  # by rule


def trace(rules: Sequence[Rule], series: Mapping[Phase, Mapping[str, Sequence[Score]]]) -> list[TraceRow]:
    """One row per token. A series that is not given is silent: its monitor judges no token."""
    aggregates = Aggregates()
    conditions = {rule.id: compile_condition(rule.condition, aggregates) for rule in rules}
    numbers = {q.text: aggregates[q] for rule in rules for q in rule.quantities}
    broken: set[tuple[Phase, str]] = set()
    rows: list[TraceRow] = []
    for phase in Phase:
        pushes = {name: feed.push() for name, feed in aggregates.feeds(phase).items()}
        for token in range(max(map(len, series[phase].values()), default=0)):
            scores = {name: values[token] for name, values in series[phase].items() if token < len(values)}
            for name, score in scores.items():
                if score is not None and not isfinite(score):
                    broken.add((phase, name))
                elif score is not None and name in pushes:
                    pushes[name](score)
            if phase is Phase.RESPONSE:
                aggregates.tokens.value = token + 1
            verdicts = {
                rule.id: "error" if rule.reads & broken else _word(conditions[rule.id]()) for rule in rules
            }
            values_now = {text: aggregate.value for text, aggregate in numbers.items()}
            named = {f"{phase}.{name}": score for name, score in scores.items()}
            rows.append(TraceRow(phase, token, named, values_now, verdicts))
    return rows


def _word(verdict: Verdict) -> str:
    return "unknown" if verdict is None else str(verdict).lower()
