"""A decision record read back: who it was about, what was decided, and on which scores. For `backtest`."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from guard.actions import ACTIONS
from guard.audit import recorded_scores, recorded_subject
from guard.errors import GuardError
from guard.types import (
    Advice,
    Answer,
    Escalate,
    Failure,
    JsonObject,
    Match,
    Mode,
    OnError,
    Opinion,
    Outcome,
    Phase,
    Score,
    Severity,
    Subject,
)

VERSION = 1
MAX_TOKENS = (
    1 << 24
)  # of a phase: no model has more, and a damaged count must not keep a replay busy for ever

_SEEN_IN_SERIES = {"missing", "nan"}


class UnjudgedError(GuardError):
    """A record cannot be decided again. The message is the reason, in few distinct words, so that it can be counted."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One decision record, ready to be decided again."""

    decision_id: str
    choice: int
    policy: str  # name@version#digest
    subject: Subject
    now: datetime
    outcome: Outcome  # as it was decided
    series: Mapping[Phase, Mapping[str, list[Score]]]
    num_tokens: Mapping[Phase, int]
    prompt_complete: bool
    rounded: bool  # some series is kept in eight bits: good for a guess only

    def advise(self, question: Escalate, phase: Phase, token: int) -> Advice:
        """What came of asking then, if the same was asked: a match at another token is about another text."""
        asked = (question.rule, question.to, phase, token)
        for opinion in self.outcome.opinions:
            if (opinion.rule, opinion.to, opinion.phase, opinion.token) == asked:
                return opinion.advice
        return Advice(Answer.UNKNOWN)

    @property
    def lost(self) -> Mapping[Phase, Mapping[str, str]]:
        """Why monitors had no score, where that can't be told from the score that was kept in its place."""
        found: dict[Phase, dict[str, str]] = {phase: {} for phase in Phase}
        for failure in self.outcome.failures:
            if failure.reason not in _SEEN_IN_SERIES:
                found[failure.phase][failure.monitor] = failure.reason
        return found

    def lacks(self, needed: Collection[tuple[Phase, str]], phase: Phase) -> str:
        """A needed series of a phase that was not recorded; "" if none, or if the phase has no tokens."""
        missing = sorted(name for of, name in needed if of is phase and name not in self.series[phase])
        return f"{phase}.{missing[0]}" if missing and self.num_tokens[phase] else ""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Usage(_Part):
    prompt_tokens: int = Field(0, ge=0, le=MAX_TOKENS)
    completion_tokens: int = Field(0, ge=0, le=MAX_TOKENS)


class _PolicyName(_Part):
    name: str
    version: str
    digest: str


class _Match(_Part):
    rule: str
    action: str
    mode: Mode
    phase: Phase
    token: int
    values: dict[str, float]
    override: str = ""


class _Failure(_Part):
    rule: str
    monitor: str
    reason: str
    mode: Mode
    on_error: OnError
    phase: Phase
    token: int


class _Opinion(_Part):
    rule: str
    to: str
    answer: Answer
    reason: str = ""
    verdict: Literal["allow", "block"]
    phase: Phase
    token: int
    latency_ms: float


class _Record(_Part):
    """What is needed of a record. Further keys are not looked at."""

    v: int
    ts: AwareDatetime
    decision_id: str
    choice: int = 0
    tenant: str
    key_id: str
    endpoint: str
    model: str
    request_id: str
    metadata: dict[str, str]
    turn: int = 1
    policy: _PolicyName
    action: Literal["allow", "log", "annotate", "steer", "escalate", "replace", "block", "unavailable"]
    matches: tuple[_Match, ...]
    shadow: tuple[_Match, ...]
    errors: tuple[_Failure, ...]
    second_opinions: tuple[_Opinion, ...] = ()
    scores: dict[Phase, dict[str, dict[str, Any]]]
    usage: _Usage = _Usage()


def read_record(record: JsonObject) -> Recorded:
    """Raises UnjudgedError if it is not a decision record, or its scores were not kept."""
    version = record.get("v") if isinstance(record, dict) else None
    if isinstance(version, int) and version != VERSION:
        raise UnjudgedError(f"a record of version {version}; this tool reads version {VERSION}")
    try:
        read = _Record.model_validate(record)
    except ValidationError:
        raise UnjudgedError("not a decision record") from None
    series = _series(record, read)
    num_tokens = {Phase.PROMPT: read.usage.prompt_tokens, Phase.RESPONSE: read.usage.completion_tokens}
    longest = {phase: max(map(len, series[phase].values()), default=0) for phase in Phase}
    outcome = _outcome(read)
    # A prompt whose scores end early was cut off, unless its last scores were what was missing.
    cut_off = (
        bool(series[Phase.PROMPT])
        and longest[Phase.PROMPT] < num_tokens[Phase.PROMPT]
        and not any(f.phase is Phase.PROMPT and f.reason == "missing" for f in outcome.failures)
    )
    if cut_off:
        num_tokens[Phase.PROMPT] = longest[Phase.PROMPT]
    num_tokens = {phase: max(num_tokens[phase], longest[phase]) for phase in Phase}
    return Recorded(
        decision_id=read.decision_id,
        choice=read.choice,
        policy=f"{read.policy.name}@{read.policy.version}#{read.policy.digest}",
        subject=recorded_subject(record),
        now=read.ts,
        outcome=outcome,
        series=series,
        num_tokens=num_tokens,
        prompt_complete=not cut_off,
        rounded=any("series_q8" in s for by_name in read.scores.values() for s in by_name.values()),
    )


def _series(record: JsonObject, read: _Record) -> dict[Phase, dict[str, list[Score]]]:
    for by_name in read.scores.values():
        for series in by_name.values():
            if not {"series_f32", "series_f64", "series_q8"} & series.keys():
                raise UnjudgedError("its scores were recorded as a summary only (series: none)")
    try:
        for by_name in read.scores.values():
            for series in by_name.values():
                _check_gaps(series)
        values = {phase: recorded_scores(record, phase) for phase in Phase}
    except (ValueError, TypeError, KeyError, ArithmeticError):
        raise UnjudgedError("its series of scores is damaged") from None
    for phase, by_name in read.scores.items():
        if any(len(values[phase][name]) != series.get("n") for name, series in by_name.items()):
            raise UnjudgedError("its series of scores is damaged")
    return values


def _check_gaps(series: dict[str, Any]) -> None:
    """Raises ValueError if a gap lies outside the series: reading it would make the series longer."""
    for start, length in series.get("none", ()):
        if not 0 <= start <= start + length <= series["n"]:
            raise ValueError("a gap outside the series")


def _outcome(read: _Record) -> Outcome:
    """What was decided, as the decider had it."""
    matches = [_match(match) for match in read.matches]
    opinions = [_opinion(opinion) for opinion in read.second_opinions]
    strongest = max((match.severity for match in matches), default=Severity.ALLOW)
    acted: Match | Opinion | None = next((match for match in matches if match.severity is strongest), None)
    if refused := next((opinion for opinion in opinions if not opinion.allowed), None):
        strongest, acted = Severity.BLOCK, refused
    return Outcome(
        action=strongest,
        phase=acted.phase if acted else None,
        token=acted.token if acted else None,
        matches=matches,
        shadow=[_match(match) for match in read.shadow],
        failures=[
            Failure(f.rule, f.monitor, f.reason, f.mode, f.on_error, f.phase, f.token) for f in read.errors
        ],
        opinions=opinions,
        unavailable=read.action == "unavailable",
    )


def _match(match: _Match) -> Match:
    if match.action not in ACTIONS:
        raise UnjudgedError(f"a match of an action that is not known here: {match.action[:40]}")
    severity = ACTIONS[match.action].severity
    return Match(
        match.rule, match.action, severity, match.mode, match.phase, match.token, match.values, match.override
    )


def _opinion(opinion: _Opinion) -> Opinion:
    advice = Advice(opinion.answer, opinion.latency_ms / 1000, opinion.reason)
    return Opinion(opinion.rule, opinion.to, advice, opinion.verdict == "allow", opinion.phase, opinion.token)
