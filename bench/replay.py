"""What a replay costs: synthetic decision records, a candidate with several rules over several monitors, one core.

Run it as `python -m bench.replay`. CPU times of this process, reading and parsing of the file included. Three kinds
of traffic: `calm` scores stay low; `busy` ones come near every threshold; in `late` ones a rule turns true near the end of
every reply, so that its tokens must be decided one by one.
"""

import json
import os
import platform
import random
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import orjson

from guard.audit import decision_record
from guard.backtest import Backtest
from guard.policy import policy_from_text
from guard.replay import replay
from guard.types import JsonObject, Phase, Subject

NUM_RECORDS = 2_500
NUM_PROMPT = 150
NUM_RESPONSE = 250
MONITORS = ("harm", "deception", "sycophancy", "jailbreak")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = """
apiVersion: interlock/v1
kind: Policy
metadata: {name: candidate, version: "2"}
defaults: {holdback: 8}
rules:
  - {id: harm-prompt, when: max(prompt.harm) > 0.97, then: {block: {}}}
  - {id: jailbreak, when: "mean(prompt.jailbreak, window=32) > 0.8 or max(prompt.jailbreak) > 0.99", then: {block: {}}}
  - {id: deception-run, when: "count(response.deception > 0.9, window=16) >= 12", then: {block: {}}}
  - {id: harm-response, when: "run(response.harm > 0.9) >= 8 and not max(prompt.jailbreak) > 0.99", then: {replace: {message: "no"}}}
  - {id: sycophancy, when: "mean(response.sycophancy, window=24) > 0.65", then: {steer: {vector: honesty, strength: 4.0}}}
  - {id: drift, when: "ema(response.deception, window=8) > 0.95", then: {annotate: {}}}
  - {id: grey, when: "frac(response.harm > 0.6, window=64) > 0.9", then: {log: {}}}
  - {id: spike, when: "last(response.jailbreak) > 0.995", mode: shadow, then: {block: {}}}
"""
KINDS = {
    "calm": (0.5, 0.5),
    "busy": (0.96, 0.96),
    "late": (0.96, 1.6),
}  # largest score at first, and of the last tokens


def series(rng: random.Random, length: int, largest: float, largest_late: float) -> list[float]:
    late = int(length * 0.85)
    return [round(min(1.0, rng.random() * (largest if i < late else largest_late)), 4) for i in range(length)]


def records(largest: float, largest_late: float) -> Iterator[JsonObject]:
    policy = policy_from_text(POLICY)
    rng = random.Random(0)  # noqa: S311
    for i in range(NUM_RECORDS):
        late = {(Phase.RESPONSE, "sycophancy"): largest_late}
        scores = {
            phase: {name: series(rng, length, largest, late.get((phase, name), largest)) for name in MONITORS}
            for phase, length in ((Phase.PROMPT, NUM_PROMPT), (Phase.RESPONSE, NUM_RESPONSE))
        }
        subject = Subject(model="m", request_id=str(i))
        outcome = replay(policy, subject, scores[Phase.PROMPT], scores[Phase.RESPONSE], NOW)
        usage = {"prompt_tokens": NUM_PROMPT, "completion_tokens": NUM_RESPONSE}
        yield decision_record(
            decision_id=f"d{i}",
            ts="2026-01-01T00:00:00Z",
            outcome=outcome,
            subject=subject,
            policy=policy,
            scores=scores,
            usage=usage,
        )


def measure(file: Path) -> dict[str, object]:
    tally = Backtest(policy_from_text(POLICY))
    started = time.process_time()
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            tally.add(orjson.loads(line), f"line {number}")
    seconds = time.process_time() - started
    if tally.num_same != NUM_RECORDS:
        raise SystemExit(f"{NUM_RECORDS - tally.num_same} records were not decided as they had been")
    return {
        "tokens": tally.num_tokens,
        "cpu_s": round(seconds, 2),
        "s_per_million_tokens": round(seconds / tally.num_tokens * 1e6, 2),
        "file_mb": round(file.stat().st_size / 1e6, 1),
    }


def main() -> None:
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, largest in KINDS.items():
            file = Path(folder) / f"{kind}.jsonl"
            with file.open("wb") as stream:
                for record in records(*largest):
                    stream.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
            result[kind] = measure(file)
    result |= {
        "rules": 8,
        "monitors": len(MONITORS),
        "records": NUM_RECORDS,
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
