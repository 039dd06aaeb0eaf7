"""Behaviour as a number per prompt, which an edit of the residual stream may move.

tokens:Sorry|I cannot         log P(S) - log(1 - P(S)) at the first response position; S: the first token of each text
continuations                 log P(positive continuation) - log P(negative one), given by each example's tags
python:module:function        function(logits [vocabulary] float32 at the first response position, example) -> float
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from monitors.lab.dataset import Example
from monitors.lab.subject import Subject, Tokens

POSITIVE_TAG, NEGATIVE_TAG = "continuation_positive", "continuation_negative"
_FORMS = "tokens:Sorry|I cannot, continuations, or python:module:function"


class Behaviour(Protocol):
    """What is run for an example, and the number that is made of the logits."""

    @property
    def name(self) -> str:
        """As the card shows it."""
        ...

    @property
    def num_sequences(self) -> int:
        """Per example."""
        ...

    @property
    def is_differentiable(self) -> bool: ...

    def sequences(self, subject: Subject, example: Example) -> tuple[Tokens, ...]:
        """What the model is given. Raises ValueError for an example that it can't be measured on."""
        ...

    def value(self, logits: Sequence[Tensor], tokens: Sequence[Tokens], example: Example) -> Tensor:
        """logits: one [num_tokens, vocabulary] float32 per sequence -> 0-d."""
        ...


@dataclass(frozen=True, slots=True)
class TokenSet:
    """The log-odds that the reply starts with one of some tokens (2406.11717)."""

    name: str
    ids: tuple[int, ...]
    num_sequences: int = 1
    is_differentiable: bool = True

    def sequences(self, subject: Subject, example: Example) -> tuple[Tokens, ...]:
        return (_prompt(subject, example),)

    def value(self, logits: Sequence[Tensor], tokens: Sequence[Tokens], example: Example) -> Tensor:
        at_first = logits[0][tokens[0].num_prompt - 1]
        inside = torch.zeros_like(at_first, dtype=torch.bool)
        inside[list(self.ids)] = True
        return torch.logsumexp(at_first[inside], 0) - torch.logsumexp(at_first[~inside], 0)


@dataclass(frozen=True, slots=True)
class Continuations:
    """Teacher-forced: how much likelier the positive continuation is, in nats over all of its tokens."""

    name: str = "continuations"
    num_sequences: int = 2
    is_differentiable: bool = True

    def sequences(self, subject: Subject, example: Example) -> tuple[Tokens, ...]:
        found = []
        for tag in (POSITIVE_TAG, NEGATIVE_TAG):
            if not (text := example.tags.get(tag)):
                raise ValueError(
                    f"example {example.id!r} has no tag {tag!r}, which 'continuations' compares; write "
                    f'"tags": {{"{POSITIVE_TAG}": "…", "{NEGATIVE_TAG}": "…"}}'
                )
            tokens = _fitting(subject, subject.tokenize(replace(example, reply=text)), example)
            if not tokens.num_reply:
                raise ValueError(f"example {example.id!r}: its {tag} has no tokens")
            found.append(tokens)
        return tuple(found)

    def value(self, logits: Sequence[Tensor], tokens: Sequence[Tokens], example: Example) -> Tensor:
        positive, negative = map(_log_prob_of_reply, logits, tokens)
        return positive - negative


@dataclass(frozen=True, slots=True)
class Custom:
    """A function of the user's own."""

    name: str
    function: Callable[[Tensor, Example], float]
    num_sequences: int = 1
    is_differentiable: bool = False

    def sequences(self, subject: Subject, example: Example) -> tuple[Tokens, ...]:
        return (_prompt(subject, example),)

    def value(self, logits: Sequence[Tensor], tokens: Sequence[Tokens], example: Example) -> Tensor:
        return torch.tensor(float(self.function(logits[0][tokens[0].num_prompt - 1], example)))


def parse_behaviour(text: str, subject: Subject, example: Example) -> Behaviour:
    """Read what `--behaviour` says; `example` is any that the texts of a token set can be tokenized after.

    Raises ValueError with the allowed forms.
    """
    if not subject.is_causal:
        raise ValueError(
            f"{subject.name} is an encoder: it writes nothing, so it has no behaviour to measure"
        )
    kind, _, rest = text.partition(":")
    if kind == "tokens" and all(rest.split("|")):
        return TokenSet(text, first_tokens(rest.split("|"), subject, example))
    if text == "continuations":
        return Continuations()
    if kind == "python" and rest.count(":") == 1:
        return Custom(text, _imported(*rest.split(":")))
    raise ValueError(f"behaviour {text!r}: write {_FORMS}")


def first_tokens(texts: Sequence[str], subject: Subject, example: Example) -> tuple[int, ...]:
    """The id of the first token of each text, as the start of a reply."""
    found = set()
    for text in texts:
        tokens = subject.tokenize(replace(example, reply=text))
        if not tokens.num_reply:
            raise ValueError(f"behaviour: {text!r} has no tokens")
        found.add(tokens.ids[tokens.num_prompt])
    return tuple(sorted(found))


def _imported(module: str, function: str) -> Callable[[Tensor, Example], float]:
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise ValueError(f"behaviour: can't import {module!r} ({error})") from error
    if callable(found):
        named: Callable[[Tensor, Example], float] = found
        return named
    raise ValueError(f"behaviour: {module!r} has no function {function!r}")


def _prompt(subject: Subject, example: Example) -> Tokens:
    return _fitting(subject, subject.tokenize(replace(example, reply=None)), example)


def _fitting(subject: Subject, tokens: Tokens, example: Example) -> Tokens:
    if len(tokens.ids) > subject.max_tokens:
        raise ValueError(
            f"example {example.id!r} has {len(tokens.ids)} tokens, and cutting it would cut the place where behaviour is "
            f"measured; at most {subject.max_tokens}: leave it out, or raise --max-tokens"
        )
    return tokens


def _log_prob_of_reply(logits: Tensor, tokens: Tokens) -> Tensor:
    first = tokens.num_prompt
    log_probs = torch.log_softmax(logits[first - 1 : -1], dim=-1)
    targets = torch.tensor(tokens.ids[first:], device=logits.device)
    return log_probs.gather(1, targets[:, None]).sum()
