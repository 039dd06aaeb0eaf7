"""The model that monitors are fitted on, as the lab sees it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from monitors.hook_points import Blocks
from monitors.lab.dataset import Example
from monitors.types import HookKind, HookPoint


@dataclass(frozen=True, slots=True)
class Tokens:
    """An example as the server would feed it: the prompt's tokens, then the reply's without its end token."""

    ids: tuple[int, ...]
    num_prompt: int
    reference: int | None = None  # index of the first user message's last token, if it is a conversation

    @property
    def num_reply(self) -> int:
        return len(self.ids) - self.num_prompt


@dataclass(frozen=True, slots=True)
class Subject:
    """A model in memory, frozen and in eval mode, with what binds monitors to it."""

    name: str
    model: nn.Module  # called with input_ids and attention_mask, both [B, T]
    blocks: Blocks
    tokenize: Callable[[Example], Tokens]  # the server's own chat template and tokenizer
    fingerprint: str
    tokenizer_hash: str | None = None
    max_tokens: int = 512  # longer examples are cut at the end
    is_causal: bool = (
        True  # False: an encoder, whose early tokens see the later ones; it can be measured, not served
    )
    token_texts: Callable[[Sequence[int]], list[str]] | None = (
        None  # each token as text, to be shown on request
    )

    @property
    def hook_points(self) -> tuple[HookPoint, ...]:
        """The output of every block."""
        return tuple(HookPoint(layer, HookKind.RESID_POST) for layer in range(len(self.blocks.layers)))
