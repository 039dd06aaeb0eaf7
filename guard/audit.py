"""The decision record: what was decided about a response, by which policy, on which scores. Never any text.

Pure functions: ids, times and hashes of content are the caller's. Scores are recorded without loss by default, so
that `replay` of a record decides the same; `q8` is an eighth to a quarter of the size and good for looking only.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import groupby
from math import isfinite
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from guard.policy import Policy
from guard.types import Failure, JsonObject, Match, Opinion, Outcome, Phase, Score, Subject

ScoresByPhase = Mapping[Phase, Mapping[str, Sequence[Score]]]
SeriesFormat = Literal["exact", "q8", "none"]

_Q8_STEPS = 253  # codes 0..253 are values from the lowest to the highest
_Q8_BROKEN, _Q8_NONE = 254, 255


def decision_record(
    *,
    decision_id: str,
    ts: str,
    outcome: Outcome,
    subject: Subject,
    policy: Policy,
    scores: ScoresByPhase,
    series: SeriesFormat = "exact",
    waivers: Sequence[str] = (),
    delivered_tokens: int = 0,
    stream: bool = False,
    trace_id: str = "",
    subject_hmac: str = "",
    usage: Mapping[str, int] | None = None,
    timing_ms: Mapping[str, float] | None = None,
    content: Mapping[str, str] | None = None,
) -> JsonObject:
    """One record, ready for JSON. `ts` is RFC 3339; `content` holds hashes or excerpts that the caller made."""
    return {
        "v": 1,
        "ts": ts,
        "decision_id": decision_id,
        "request_id": subject.request_id,
        "trace_id": trace_id,
        "tenant": subject.tenant,
        "key_id": subject.key_id,
        "subject": subject_hmac,
        "endpoint": subject.endpoint,
        "model": subject.model,
        "metadata": dict(subject.metadata),
        "turn": subject.turn,
        "policy": {"name": policy.name, "version": policy.version, "digest": policy.digest[:12]},
        "action": outcome.verdict,
        "phase": outcome.phase.value if outcome.phase else None,
        "token": outcome.token,
        "delivered_tokens": delivered_tokens,
        "stream": stream,
        "matches": [_match(match, policy) for match in outcome.matches],
        "shadow": [_match(match, policy) for match in outcome.shadow],
        "second_opinions": [_opinion(opinion) for opinion in outcome.opinions],
        "exceptions": list(waivers),
        "scores": {
            phase.value: {name: series_record(values, series) for name, values in by_monitor.items()}
            for phase, by_monitor in scores.items()
        },
        "errors": [_failure(failure) for failure in outcome.failures],
        "usage": dict(usage or {}),
        "timing_ms": dict(timing_ms or {}),
        "content": dict(content or {"mode": "none"}),
    }


def _match(match: Match, policy: Policy) -> JsonObject:
    return {
        "rule": match.rule,
        "mode": match.mode.value,
        "action": match.action,
        "severity": policy.rule(match.rule).severity,
        "phase": match.phase.value,
        "token": match.token,
        "values": dict(match.values),
        **({"override": match.override} if match.override else {}),
    }


def _opinion(opinion: Opinion) -> JsonObject:
    return {
        "rule": opinion.rule,
        "to": opinion.to,
        "answer": opinion.advice.answer.value,
        "reason": opinion.advice.reason,
        "verdict": "allow" if opinion.allowed else "block",
        "phase": opinion.phase.value,
        "token": opinion.token,
        "latency_ms": round(opinion.advice.seconds * 1000, 3),
    }


def _failure(failure: Failure) -> JsonObject:
    return {
        "rule": failure.rule,
        "monitor": failure.monitor,
        "reason": failure.reason,
        "mode": failure.mode.value,
        "on_error": failure.on_error.value,
        "phase": failure.phase.value,
        "token": failure.token,
    }


def recorded_subject(record: JsonObject) -> Subject:
    """Whom a record is about, for `replay`."""
    return Subject(
        tenant=record["tenant"],
        model=record["model"],
        endpoint=record["endpoint"],
        key_id=record["key_id"],
        request_id=record["request_id"],
        decision_id=record["decision_id"],
        metadata=record["metadata"],
        turn=record.get("turn", 1),
    )


# --- series of scores


def series_record(values: Sequence[Score], form: SeriesFormat = "exact") -> JsonObject:
    """A series as a summary and, by `form`, its values in base64: `series_f32`, or `series_f64` where 32 bits lose."""
    finite = [float(value) for value in values if value is not None and isfinite(value)]
    record: JsonObject = {"n": len(values)}
    if finite:
        record |= {"max": max(finite), "p95": float(np.percentile(finite, 95))}
    match form:
        case "exact":
            numbers = np.array([0.0 if value is None else value for value in values], np.float64)
            with np.errstate(over="ignore"):
                short = numbers.astype(np.float32)
            lossless = np.array_equal(short.astype(np.float64), numbers, equal_nan=True)
            key, stored = ("series_f32", short) if lossless else ("series_f64", numbers)
            record[key] = _base64(stored.astype(stored.dtype.newbyteorder("<")))
            record |= _none_runs(values)
        case "q8":
            low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
            codes = [_q8_code(value, low, high) for value in values]
            record |= {"range": [low, high], "series_q8": _base64(np.array(codes, np.uint8))}
        case "none":
            pass
    return record


def read_series(record: JsonObject) -> list[Score]:
    """The values of a series record: exact ones if they are there, else the rounded ones. Raises KeyError if neither."""
    if "series_q8" in record:
        low, high = record["range"]
        return [_q8_value(int(code), low, high) for code in b64decode(record["series_q8"])]
    if "series_f32" in record:
        numbers = np.frombuffer(b64decode(record["series_f32"]), "<f4").astype(np.float64)
    else:
        numbers = np.frombuffer(b64decode(record["series_f64"]), "<f8")
    values: list[Score] = numbers.tolist()
    for start, length in record.get("none", ()):
        values[start : start + length] = [None] * length
    return values


def recorded_scores(record: JsonObject, phase: Phase) -> dict[str, list[Score]]:
    """All series of one phase of a decision record, for `replay`."""
    return {name: read_series(series) for name, series in record["scores"].get(phase.value, {}).items()}


def _none_runs(values: Sequence[Score]) -> JsonObject:
    """Where there is no score: [start, length] of each run, as floats have no room for it."""
    runs = []
    for missing, group in groupby(enumerate(values), key=lambda item: item[1] is None):
        places = [i for i, _ in group]
        if missing:
            runs.append([places[0], len(places)])
    return {"none": runs} if runs else {}


def _base64(numbers: NDArray[np.generic]) -> str:
    return b64encode(numbers.tobytes()).decode()


def _q8_code(value: Score, low: float, high: float) -> int:
    if value is None:
        return _Q8_NONE
    if not isfinite(value):
        return _Q8_BROKEN
    return round((value - low) / (high - low) * _Q8_STEPS) if high > low else 0


def _q8_value(code: int, low: float, high: float) -> Score:
    if code == _Q8_NONE:
        return None
    return float("nan") if code == _Q8_BROKEN else low + code / _Q8_STEPS * (high - low)


# --- the chain: each record names the hash of the one before, so that a change or a gap shows


def chained(record: JsonObject, prev: str) -> JsonObject:
    """The record with `prev` and its own `hash`. The first record of a log has `prev` ""."""
    linked = {**record, "prev": prev}
    return {**linked, "hash": record_hash(linked)}


def record_hash(record: JsonObject) -> str:
    """The hash of everything in a record except its `hash`."""
    body = {key: value for key, value in record.items() if key != "hash"}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{sha256(canonical.encode()).hexdigest()}"
