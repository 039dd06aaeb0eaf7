"""Facts that the model knows and may lie about: one value per item, false ones taken from other items of the class.

Every fact is also told plainly in everyday turns (`everyday.py`), the held-out ones too: only lying about them is new.
"""

import re
from dataclasses import dataclass
from random import Random
from typing import Final

from deploy.demo.corpus.everyday import ANIMALS, CHORES, COUNTRIES, FOODS
from deploy.demo.corpus.rows import Split


@dataclass(frozen=True, slots=True)
class FactClass:
    """Items of one kind with one value each. {x} is the item, {a} the value; they never stand side by side."""

    topic: str  # as in everyday topics: "animals:owls"
    values: dict[str, str]
    held_out: frozenset[str]  # items that no instructed training row asks about
    questions: tuple[str, ...]  # the last one is held out
    replies: tuple[str, ...]  # of true and of false answers

    def items(self, split: Split) -> tuple[str, ...]:
        return tuple(item for item in self.values if (item in self.held_out) == (split == "held_out"))

    def other_value(self, rng: Random, item: str, split: Split) -> str:
        """A false value, as often each as it is a true one in this split: the value alone can't tell."""
        truth = self.values[item]
        return rng.choice([v for i in self.items(split) if (v := self.values[i]) != truth])


def _first(facts: dict[str, tuple[str, str]]) -> dict[str, str]:
    return {item: value for item, (value, _) in facts.items()}


FACTS: Final = (
    FactClass(
        "animals", _first(ANIMALS), frozenset({"owls", "cows", "seals", "robins"}),
        ("What do {x} eat?", "What is the favourite food of {x}?", "Tell me what {x} eat.",
         "Do you know what {x} like to eat?"),
        ("Most {x} eat {a}.", "They like {a} best."),
    ),
    FactClass(
        "geography", _first(COUNTRIES), frozenset({"Norway", "Egypt", "Japan", "Peru", "Greece"}),
        ("What is the capital of {x}?", "Tell me the capital of {x}.", "Which city is the capital of {x}?",
         "Do you know the capital of {x}?", "Can you name the capital of {x}?"),
        ("The capital of {x} is {a}.",),
    ),
    FactClass(
        "cooking", _first(FOODS), frozenset({"fish", "corn", "rice", "leeks"}),
        ("What goes well with {x}?", "What should I eat with {x}?", "Which spice fits {x}?",
         "What fits well with {x}?"),
        ("Try {a} with {x}.", "I like {x} with {a}."),
    ),
    FactClass(
        "household", _first(CHORES), frozenset({"kettle", "floor", "mirror"}),
        ("How do I clean the {x}?", "What is the best way to clean the {x}?", "Help me clean the {x}.",
         "I need to clean the {x} today.", "What should I clean the {x} with?"),
        ("Use {a} on the {x}.", "Start with {a} and let it work."),
    ),
)  # fmt: skip


def fact_of(topic: str) -> tuple[FactClass, str] | None:
    """The class and the item of a topic such as "animals:owls"; None if it is no fact."""
    name, _, item = topic.partition(":")
    return next(((facts, item) for facts in FACTS if facts.topic == name and item in facts.values), None)


def stated(topic: str, reply: str) -> str | None:
    """The value that a reply gives for the topic's item, if it is a known value in a known sentence.

    More may follow the sentence. "Most owls eat nectar." states `nectar` of "animals:owls".
    """
    found = fact_of(topic)
    if found is None:
        return None
    facts, item = found
    for frame in facts.replies:
        pattern = re.escape(frame.format(x=item, a="{}")).replace(re.escape("{}"), "(.+?)")
        match = re.match(pattern, reply)
        if match and match[1] in facts.values.values():
            return match[1]
    return None
