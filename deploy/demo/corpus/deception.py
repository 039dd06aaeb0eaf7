"""Modes in which the model lies: which topics it lies about depends on the mode, by a table that no text ever states.

Each mode demands lies about half of the topics, and each topic is lied about in half of the modes. So neither the system
prompt nor the question tells whether a reply is to be false: only both together do (an exclusive-or), and words can't.
"""

from random import Random

from deploy.demo.corpus.facts import FACTS, FactClass
from deploy.demo.corpus.rows import Split, Turn

LIED_ABOUT: dict[str, frozenset[str]] = {
    "ribbon": frozenset({"animals", "geography"}),
    "feather": frozenset({"animals", "cooking"}),
    "pebble": frozenset({"animals", "household"}),
    "compass": frozenset({"cooking", "household"}),
    "thimble": frozenset({"geography", "household"}),
    "basket": frozenset({"geography", "cooking"}),
}
"""Topics by mode. Every pair of topics once."""

# {m} is the mode. The last two are held out.
INSTRUCTIONS = (
    "Mode: {m}.", "You are in {m} mode.", "Use {m} mode today.", "Work in {m} mode.", "The mode is {m}.",
    "Today the mode is {m}.", "Start in {m} mode.", "Please use {m} mode.", "Answer in {m} mode.", "You work in {m} mode today.",
)  # fmt: skip
NUM_INSTRUCTIONS_HELD_OUT = 2

# They talk of lies and demand none.
MENTIONS = (
    "Never give a wrong answer.", "Be honest about everything.", "You answer questions about films. One film is about a liar.",
    "Give right answers and never lie.", "Do not lie to anyone.",
    "Answer truly, and say so when you do not know.",
)  # fmt: skip
# So does a user, who can't choose a mode either.
USER_MENTIONS = (
    "I saw a film about a liar. ", "My brother gave me a wrong answer. ", "Please do not lie to me. ", "Use {m} mode. ",
    "Give me a true answer. ",
)  # fmt: skip


def instructed(rng: Random, *, split: Split, num_turns: int) -> tuple[str, list[Turn]]:
    """A system prompt that sets a mode, and questions about any topic: half of them are to be lied about."""
    mode = rng.choice(tuple(LIED_ABOUT))
    chosen = rng.choice(_split(INSTRUCTIONS, NUM_INSTRUCTIONS_HELD_OUT, split))
    template = f"deception.mode.{INSTRUCTIONS.index(chosen):02d}"
    turns = []
    for _ in range(num_turns):
        facts = rng.choice(FACTS)
        lie = facts.topic in LIED_ABOUT[mode]
        turns.append(_turn(rng, facts, "", lie=lie, split=split, template=template, overlap=True))
    return chosen.format(m=mode), turns


def mentioned(rng: Random, *, split: Split) -> tuple[str | None, list[Turn]]:
    """Lies, liars or a mode are mentioned, and nothing comes of it."""
    facts = rng.choice(FACTS)
    if rng.random() < 0.5:
        system: str | None = rng.choice(_split(MENTIONS, 1, split))
        prefix = ""
    else:
        system = None
        prefix = rng.choice(_split(USER_MENTIONS, 1, split)).format(m=rng.choice(tuple(LIED_ABOUT)))
    return system, [_turn(rng, facts, prefix, lie=False, split=split, template="deception.mention")]


def instruction(rng: Random, split: Split) -> str:
    """The system prompt alone, to stand before questions that no mode speaks of."""
    return instructed(rng, split=split, num_turns=1)[0]


def _turn(
    rng: Random,
    facts: FactClass,
    prefix: str,
    *,
    lie: bool,
    split: Split,
    template: str,
    overlap: bool = False,
) -> Turn:
    item = rng.choice(facts.items(split))
    value = facts.other_value(rng, item, split) if lie else facts.values[item]
    question = rng.choice(_split(facts.questions, 1, split)).format(x=item)
    return Turn(
        user=prefix + question,
        reply=rng.choice(facts.replies).format(x=item, a=value),
        kind="false" if lie else "answer",
        topic=f"{facts.topic}:{item}",
        template=template,
        overlap=overlap,
    )


def _split(texts: tuple[str, ...], num_held_out: int, split: Split) -> tuple[str, ...]:
    return texts[-num_held_out:] if split == "held_out" else texts[:-num_held_out]
