"""Forward passes of many sequences with an edit at hook points."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from monitors.hooks import attach
from monitors.lab.causal.edits import Edit
from monitors.lab.subject import Subject, Tokens
from monitors.types import HookPoint

_BATCH_TOKENS = 4096  # padded, per forward pass: the logits of a whole vocabulary are held for each


@dataclass(frozen=True, slots=True)
class Passage:
    """Tokens, from where on they are edited, and whose they are."""

    tokens: Tokens
    start: int
    stop: int | None = None  # None: to the end
    owner: int = 0


def edit_start(tokens: Tokens, *, from_last: bool, exclude_first: int) -> int:
    """The first token that is edited: the prompt's last one, or its first in scope."""
    last = tokens.num_prompt - 1
    return last if from_last else min(exclude_first, last)


Take = Callable[[int, Mapping[HookPoint, Tensor]], None]
"""(index of a sequence, its rows at each hook point, [num_tokens, d_model] float32)."""

Consume = Callable[[Sequence[int], Sequence[Tensor]], None]
"""(indices of the sequences of a batch, their logits, each [num_tokens, vocabulary] float32)."""


def run(
    subject: Subject,
    sequences: Sequence[Passage],
    points: Sequence[HookPoint],
    edit: Edit | None,
    *,
    step: Callable[[int], None],
    consume: Consume | None = None,
    watched: Sequence[HookPoint] = (),
    take: Take | None = None,
    grad: bool = False,
) -> None:
    """Run all, sequences of like length together; padding stands at the end and is masked.

    `consume` gets the logits, `take` the rows at the points `watched`, as the edit left them. `step` is told how many
    sequences were run. Sequences of one owner are never parted.
    """
    device = next(subject.model.parameters()).device
    seen: dict[HookPoint, Tensor] = {}
    for batch in _batches(sequences):
        width = max(len(sequences[i].tokens.ids) for i in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.int64)
        mask, edited = torch.zeros_like(ids), torch.zeros(len(batch), width, dtype=torch.bool)
        owners = torch.tensor([sequences[i].owner for i in batch])[:, None].expand(-1, width)
        for row, index in enumerate(batch):
            its = sequences[index]
            size = len(its.tokens.ids)
            ids[row, :size] = torch.tensor(its.tokens.ids)
            mask[row, :size] = 1
            edited[row, its.start : size if its.stop is None else its.stop] = True
        visit = _visitor(edit, edited.to(device), owners.to(device))
        with (
            torch.set_grad_enabled(grad),
            attach(subject.blocks, points if edit else (), visit),
            attach(subject.blocks, watched, seen.__setitem__),
        ):
            logits = subject.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
            sizes = [len(sequences[i].tokens.ids) for i in batch]
            if consume is not None:
                consume(batch, [logits[row, :size].float() for row, size in enumerate(sizes)])
        if take is not None:
            for row, (index, size) in enumerate(zip(batch, sizes, strict=True)):
                take(index, {point: seen[point][row, :size].float().cpu() for point in watched})
        step(len(batch))


def _visitor(
    edit: Edit | None, edited: Tensor, owners: Tensor
) -> Callable[[HookPoint, Tensor], Tensor | None]:
    def visit(point: HookPoint, hidden: Tensor) -> Tensor | None:
        if edit is None:
            return None
        rows = edit(point, hidden[edited].float(), owners[edited])
        changed = hidden.clone()
        changed[edited] = rows.to(hidden.dtype)
        return changed

    return visit


def _batches(sequences: Sequence[Passage]) -> list[list[int]]:
    by_owner: dict[int, list[int]] = {}
    for index, its in enumerate(sequences):
        by_owner.setdefault(its.owner, []).append(index)
    width_of = {o: max(len(sequences[i].tokens.ids) for i in members) for o, members in by_owner.items()}
    batches: list[list[int]] = [[]]
    for owner in sorted(by_owner, key=width_of.__getitem__):
        members = by_owner[owner]
        if batches[-1] and (len(batches[-1]) + len(members)) * width_of[owner] > _BATCH_TOKENS:
            batches.append([])
        batches[-1] += members
    return [batch for batch in batches if batch]
