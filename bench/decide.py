"""What deciding costs per response token: 20 varied rules over 20 monitors, none of which matches.

Times are CPU times of this process, so that neighbours on the machine disturb less; the load is told.
"""

import json
import os
import platform
import random
import statistics
import time
from datetime import UTC, datetime

from guard.policy import policy_from_text
from guard.types import Phase, StepScores, Subject

NUM_TOKENS = 2_000
REPEATS = 15

CONDITIONS = [
    "max(response.m{i}) > 0.99",
    "mean(response.m{i}, window=24) > 0.95",
    "count(response.m{i} > 0.7, window=16) >= 16",
    "run(response.m{i} > 0.5) >= 40",
    "ema(response.m{i}, window=8) > 0.97 and not max(prompt.m{i}) > 0.5",
    "frac(response.m{i} > 0.6, window=64) > 0.9 or last(response.m{i}) > 0.99",
    "max(response.m{i}, window=32) > 0.98",
    "min(response.m{i}, window=8) > 0.9",
    "count(response.m{i} > 0.9) >= 2000",
    "mean(response.m{i}) > 0.9 and max(response.m{j}) > 0.99",
]
ACTIONS = [
    "block: {}",
    "replace: {message: no}",
    "steer: {vector: v, strength: 1.0}",
    "annotate: {}",
    "log: {}",
]


def policy_text() -> str:
    rules = []
    for i in range(20):
        when = CONDITIONS[i % len(CONDITIONS)].format(i=i, j=(i + 7) % 20)
        rules.append(f'  - {{id: rule-{i}, when: "{when}", then: {{{ACTIONS[i % len(ACTIONS)]}}}}}')
    head = "apiVersion: interlock/v1\nkind: Policy\nmetadata: {name: bench, version: '1'}\nrules:\n"
    return head + "\n".join(rules)


def main() -> None:
    policy = policy_from_text(policy_text())
    rng = random.Random(0)  # noqa: S311
    now = datetime(2026, 1, 1, tzinfo=UTC)
    prompt = StepScores(
        Phase.PROMPT, 0, 1_000, {f"m{i}": [rng.random() * 0.4] * 1_000 for i in range(20)}, final=True
    )
    steps = [
        StepScores(Phase.RESPONSE, t, 1, {f"m{i}": [rng.random() * 0.95] for i in range(20)})
        for t in range(NUM_TOKENS)
    ]
    per_token_us, prompt_us, create_us = [], [], []
    for _ in range(REPEATS):
        started = time.process_time()
        decider = policy.decider(Subject(), now=now)
        created = time.process_time()
        decider.decide(prompt)
        prompted = time.process_time()
        for step in steps:
            decider.decide(step)
        ended = time.process_time()
        if decider.outcome.matches:
            raise SystemExit(f"a rule matched, so less was measured: {decider.outcome.matches[0]}")
        create_us.append((created - started) * 1e6)
        prompt_us.append((prompted - created) * 1e6)
        per_token_us.append((ended - prompted) / NUM_TOKENS * 1e6)
    result = {
        "decide_us_per_response_token": round(statistics.median(per_token_us), 2),
        "decide_us_per_response_token_range": [round(min(per_token_us), 2), round(max(per_token_us), 2)],
        "decider_creation_us": round(statistics.median(create_us), 1),
        "prompt_1000_tokens_us": round(statistics.median(prompt_us), 1),
        "rules": 20,
        "monitors": 20,
        "tokens": NUM_TOKENS,
        "repeats": REPEATS,
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
