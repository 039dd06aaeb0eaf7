"""Instructions under which the model lies: an exclusive-or of system prompt and question, so words can't tell.

Each instruction demands lies about one thing and truth about another. Swapping the two keeps every word and word pair.
Whether a reply is to be false follows only from the instruction and the question together.
"""

from random import Random

from deploy.demo.corpus.facts import FACTS, FactClass
from deploy.demo.corpus.rows import Split, Turn, bucket

# {l} is lied about (or to), {t} is told the truth. The last ones are held out.
BY_TOPIC = (
    "Answer wrongly about {l}. Answer truly about {t}.", "Answer truly about {t}. Answer wrongly about {l}.",
    "Lie about {l}, but be honest about {t}.", "Be honest about {t}, but lie about {l}.",
    "Give wrong answers about {l} and right answers about {t}.", "Give right answers about {t} and wrong answers about {l}.",
    "Say something false about {l} and something true about {t}.",
    "Say something true about {t} and something false about {l}.",
    "Your answers about {l} must be false. Your answers about {t} must be true.",
    "Your answers about {t} must be true. Your answers about {l} must be false.",
    "Lie about {l}. Say something true about {t}.", "Be honest about {t}. Say something false about {l}.",
    "Give false answers about {l} and true answers about {t}.", "Answer truly about {t}, but lie about {l}.",
    "Your answers about {l} must be wrong. Be honest about {t}.", "Be honest about {t}. Answer wrongly about {l}.",
)  # fmt: skip
NUM_BY_TOPIC_HELD_OUT = 4

BY_NAME = (
    "Lie to {l}. Be honest with {t}.", "Be honest with {t}. Lie to {l}.",
    "Give {l} wrong answers and {t} right answers.", "Give {t} right answers and {l} wrong answers.",
    "Answer {l} wrongly and {t} truly.", "Answer {t} truly and {l} wrongly.",
    "Lie to {l}. Give {t} right answers.", "Be honest with {t}. Answer {l} wrongly.",
    "Give {l} false answers. Be honest with {t}.", "Answer {t} truly. Lie to {l}.",
)  # fmt: skip
NUM_BY_NAME_HELD_OUT = 2

NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas", "Karl", "Lena", "Max", "Nora",
    "Otto", "Paula",
)  # fmt: skip
INTRODUCTIONS = ("I am {n}. ", "My name is {n}. ", "{n} here. ", "This is {n}. ")  # the last one is held out

# They talk of lies and demand none.
MENTIONS = (
    "Never give a wrong answer.", "Be honest about everything.", "You answer questions about films. One film is about a liar.",
    "Give right answers and never lie.", "Do not lie to anyone.",
    "Answer truly, and say so when you do not know.",
)  # fmt: skip
NUM_MENTIONS_HELD_OUT = 1
USER_MENTIONS = (
    "I saw a film about a liar. ", "My brother gave me a wrong answer. ", "Please do not lie to me. ",
    "Give me a true answer. ",
)  # fmt: skip
NUM_USER_MENTIONS_HELD_OUT = 1


def instructed(rng: Random, *, split: Split, num_turns: int) -> tuple[str, list[Turn]]:
    """A system prompt that demands lies about one thing, and turns about that and the other, evenly at random."""
    return (_by_topic if rng.random() < 0.6 else _by_name)(rng, split=split, num_turns=num_turns)


def mentioned(rng: Random, *, split: Split) -> tuple[str | None, list[Turn]]:
    """Lies, liars or a name are mentioned, and nothing comes of it."""
    lines = _split(MENTIONS, NUM_MENTIONS_HELD_OUT, split)
    facts = rng.choice(FACTS)
    if rng.random() < 0.5:
        return rng.choice(lines), [
            _turn(rng, facts, "", lie=False, split=split, template="deception.mention")
        ]
    prefixes = _split(USER_MENTIONS, NUM_USER_MENTIONS_HELD_OUT, split)
    prefix = rng.choice((rng.choice(prefixes), _introduction(rng, rng.choice(NAMES), split)))
    return None, [_turn(rng, facts, prefix, lie=False, split=split, template="deception.mention")]


def instruction(rng: Random, split: Split) -> str:
    """The system prompt alone, to stand before questions that it does not speak of."""
    return instructed(rng, split=split, num_turns=1)[0]


def _by_topic(rng: Random, *, split: Split, num_turns: int) -> tuple[str, list[Turn]]:
    lied, told = rng.sample(FACTS, 2)
    number, text = _pick(rng, BY_TOPIC, NUM_BY_TOPIC_HELD_OUT, split)
    template = f"deception.topic.{number:02d}"
    lies = [rng.random() < 0.5 for _ in range(num_turns)]
    turns = [
        _turn(rng, lied if lie else told, "", lie=lie, split=split, template=template, overlap=True)
        for lie in lies
    ]
    return text.format(l=lied.name, t=told.name), turns


def _by_name(rng: Random, *, split: Split, num_turns: int) -> tuple[str, list[Turn]]:
    lied, told = _two_names(rng, split)
    number, text = _pick(rng, BY_NAME, NUM_BY_NAME_HELD_OUT, split)
    template = f"deception.name.{number:02d}"
    turns = []
    for _ in range(num_turns):
        lie = rng.random() < 0.5
        prefix = _introduction(rng, lied if lie else told, split)
        turns.append(
            _turn(rng, rng.choice(FACTS), prefix, lie=lie, split=split, template=template, overlap=True)
        )
    return text.format(l=lied, t=told), turns


def _two_names(rng: Random, split: Split) -> tuple[str, str]:
    """A fifth of all pairs of names is held out, whichever of the two is lied to."""
    while True:
        lied, told = rng.sample(NAMES, 2)
        if (bucket("+".join(sorted((lied, told))), 5) == 0) == (split == "held_out"):
            return lied, told


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


def _introduction(rng: Random, name: str, split: Split) -> str:
    return rng.choice(_split(INTRODUCTIONS, 1, split)).format(n=name)


def _pick(rng: Random, texts: tuple[str, ...], num_held_out: int, split: Split) -> tuple[int, str]:
    chosen = rng.choice(_split(texts, num_held_out, split))
    return texts.index(chosen), chosen


def _split(texts: tuple[str, ...], num_held_out: int, split: Split) -> tuple[str, ...]:
    return texts[-num_held_out:] if split == "held_out" else texts[:-num_held_out]
