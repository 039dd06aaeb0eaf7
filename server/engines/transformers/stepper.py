"""The scheduler: which rows one step feeds, and what came of it.

A step draws and feeds one token for every
decoding sequence whose consumer is ready, then feeds one chunk of the prompt. Because a token is drawn at the
*start* of a step and fed in the same step, its own scores come with it; and because it is drawn after the consumer
has decided on the token before it, no token is ever drawn that a decision should have prevented.
"""

from collections.abc import Callable, Collection
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
import torch
from numpy.typing import NDArray

from guard.types import Phase
from monitors.base import Monitor
from monitors.runtime import RowSpan, Runtime
from server.engines.base import EngineError, FinishReason, StepOutput, Token
from server.engines.transformers.forward import Forward
from server.engines.transformers.prefix_cache import BLOCK, Block, PrefixCache
from server.engines.transformers.rows import RowTable
from server.engines.transformers.sampling import with_logprobs
from server.engines.transformers.sequence import Sequence

StepResult = StepOutput | EngineError
_FILLER = Token(0, "")


class _Fed(Enum):
    """Why a decoding row is fed."""

    NEW = auto()  # a response token, just drawn
    PROMPT_END = auto()  # the prompt's last token again, now steered
    PAUSED = (
        auto()
    )  # the consumer is not ready: carried along, writing beyond its end, where it is written over later


@dataclass(frozen=True, slots=True)
class _Row:
    """What is fed to one decoding row in this step."""

    sequence: Sequence
    fed: _Fed
    token: Token
    position: int


@dataclass(frozen=True, slots=True)
class _Passed:
    """What a decode pass over n rows yields."""

    logits: torch.Tensor  # [n, vocab]
    finite: list[bool]  # whether each row's highest logit is
    greedy: list[int]  # each row's most likely token
    values: NDArray[np.float32]  # [n, num_columns] raw monitor values


class Stepper:
    """Runs steps over at most `cache.num_slots` sequences. One thread calls it."""

    def __init__(
        self,
        forward: Forward,
        runtime: Runtime,
        *,
        eos_token_ids: Collection[int],
        prefill_chunk: int,
        max_context: int,
        prefix_cache: PrefixCache,
    ) -> None:
        self._forward = forward
        self._runtime = runtime
        self._eos = frozenset(eos_token_ids)
        self._prefill_chunk = prefill_chunk
        self._max_context = max_context
        self.prefix_cache = prefix_cache
        self.rows = RowTable(forward.cache)

    # --- one step --------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, ready: AbstractSet[Sequence]) -> list[tuple[Sequence, StepResult]]:
        """Feed what can be fed. Sequences that end, by themselves or by an error, are removed."""
        results = self._decode_step(ready)
        for sequence in self.rows.prefilling:
            if sequence in ready:
                results.append(self._prefill_step(sequence))
                break
        return results

    def _decode_step(self, ready: AbstractSet[Sequence]) -> list[tuple[Sequence, StepResult]]:
        results: list[tuple[Sequence, StepResult]] = []
        drawn: list[_Row] = []
        for sequence in list(self.rows.decoding):
            if sequence not in ready:
                drawn.append(self._paused(sequence))
                continue
            try:
                row = self._draw(sequence)
            except Exception as error:  # noqa: BLE001  # one request's sampling must not end the others
                results.append((sequence, _as_engine_error(error)))
                continue
            if isinstance(row, StepOutput):
                results.append((sequence, row))
            else:
                drawn.append(row)
        for sequence, result in results:
            self.rows.remove(sequence, scrub=isinstance(result, EngineError))
        # removal has moved rows, so take their order from the table
        by_sequence = {row.sequence: row for row in drawn}
        drawn = [by_sequence[sequence] for sequence in self.rows.decoding]
        if any(row.fed is not _Fed.PAUSED for row in drawn):
            results += self._feed(drawn)
        for sequence, result in results:
            if isinstance(result, EngineError) or result.finish is not None:
                self.rows.remove(sequence, scrub=isinstance(result, EngineError))
        return results

    def _paused(self, sequence: Sequence) -> _Row:
        """Carry a row along: write beyond its end, or, where there is no more room, its prompt's last token as it was."""
        if sequence.num_fed < self._max_context:
            return _Row(sequence, _Fed.PAUSED, _FILLER, sequence.num_fed)
        last = Token(sequence.request.prompt_ids[-1], "")
        return _Row(sequence, _Fed.PAUSED, last, sequence.num_fed - 1)

    def _draw(self, sequence: Sequence) -> _Row | StepOutput:
        """Draw the next token, or end the response if it is over before another token is fed."""
        if sequence.refeed_prompt_end:
            last = Token(sequence.request.prompt_ids[-1], "")
            return _Row(sequence, _Fed.PROMPT_END, last, sequence.num_fed - 1)
        if sequence.max_tokens == 0:
            return self._end(sequence, FinishReason.LENGTH)
        sampling = sequence.request.sampling
        token = self._next_token(sequence)
        if token.token_id in sampling.stop_token_ids or (
            token.token_id in self._eos and not sampling.ignore_eos
        ):
            return self._end(sequence, FinishReason.STOP)
        return _Row(sequence, _Fed.NEW, token, sequence.num_fed)

    @staticmethod
    def _next_token(sequence: Sequence) -> Token:
        if sequence.greedy_next is not None:
            return Token(sequence.greedy_next, "")
        assert sequence.logits is not None, "a sequence decodes only after its prompt was fed"  # noqa: S101
        drawn = sequence.sampler.draw(sequence.logits)
        if drawn.logprob is None:
            return Token(drawn.token_id, "")
        return Token(drawn.token_id, "", *sequence.describe(drawn))

    def _end(self, sequence: Sequence, finish: FinishReason) -> StepOutput:
        return StepOutput(
            Phase.RESPONSE,
            sequence.num_generated,
            0,
            None,
            tokens=tuple(sequence.text.flush()),
            finish=finish,
        )

    def _feed(self, rows: list[_Row]) -> list[tuple[Sequence, StepResult]]:
        """Feed one token per row. If the pass fails, each row is fed alone, so that only the culprit fails.

        Sequences change only after their pass has succeeded: a row that is fed again is fed the same.
        """
        try:
            return self._advance(rows, self._pass(0, rows))
        except Exception as error:  # noqa: BLE001
            if len(rows) == 1:
                return [(rows[0].sequence, _as_engine_error(error))]
            is_short_of_memory = isinstance(error, torch.OutOfMemoryError)
        if is_short_of_memory:
            torch.cuda.empty_cache()  # the tensors of the pass that failed are gone only now
        results: list[tuple[Sequence, StepResult]] = []
        for index, row in enumerate(rows):
            if row.fed is _Fed.PAUSED:
                continue
            try:
                results += self._advance([row], self._pass(index, [row]))
            except Exception as error:  # noqa: BLE001
                results.append((row.sequence, _as_engine_error(error)))
        return results

    def _pass(self, first_row: int, rows: list[_Row]) -> _Passed:
        """One forward pass over consecutive rows, and what is needed of it on the host."""
        spans = [RowSpan(1, () if row.fed is _Fed.PAUSED else row.sequence.edits) for row in rows]
        with self._reading(spans) as values:
            logits = self._forward.decode(
                first_row, [row.token.token_id for row in rows], [row.position for row in rows]
            )
        best = logits.max(dim=-1)
        return _Passed(logits, torch.isfinite(best.values).tolist(), best.indices.tolist(), values())

    def _advance(self, rows: list[_Row], passed: _Passed) -> list[tuple[Sequence, StepResult]]:
        """Take each row's sequence one token further. What goes wrong with one row is that row's error alone."""
        results: list[tuple[Sequence, StepResult]] = []
        for index, row in enumerate(rows):
            if row.fed is _Fed.PAUSED:
                continue
            if not passed.finite[index]:
                results.append((row.sequence, EngineError("the model's logits are not finite")))
                continue
            self._set_logits(row.sequence, passed.logits[index], passed.greedy[index])
            if row.fed is _Fed.PROMPT_END:
                row.sequence.refeed_prompt_end = False  # the prompt was decided on already: nothing to report
                continue
            try:
                output = self._after_token(row.sequence, row.token, passed.values[index : index + 1])
            except Exception as error:  # noqa: BLE001
                results.append((row.sequence, _as_engine_error(error)))
            else:
                results.append((row.sequence, output))
        return results

    def _after_token(self, sequence: Sequence, token: Token, values: NDArray[np.float32]) -> StepOutput:
        index = sequence.num_generated
        sequence.num_fed += 1
        sequence.num_generated += 1
        sequence.count_steered_token()
        settled = sequence.text.push(token)
        finish = None
        if sequence.text.stopped:
            finish = FinishReason.STOP
        elif sequence.num_generated >= sequence.max_tokens or sequence.num_fed >= self._max_context:
            settled += sequence.text.flush()
            finish = FinishReason.LENGTH
        return StepOutput(
            Phase.RESPONSE, index, 1, values, self._layout, tokens=tuple(settled), finish=finish
        )

    def _prefill_step(self, sequence: Sequence) -> tuple[Sequence, StepResult]:
        try:
            return sequence, self._prefill(sequence, self.rows.row(sequence))
        except Exception as error:  # noqa: BLE001
            self.rows.remove(sequence, scrub=True)
            return sequence, _as_engine_error(error)

    def _prefill(self, sequence: Sequence, row: int) -> StepOutput:
        start = sequence.num_fed
        if start == 0:
            self._restore_prefix(sequence, row)
        ids = sequence.request.prompt_ids[sequence.num_fed : sequence.num_fed + self._prefill_chunk]
        wanted = sequence.request.sampling.prompt_logprobs
        with self._reading([RowSpan(len(ids))]) as values:
            logits = self._forward.prefill(row, sequence.num_fed, ids, all_logits=wanted is not None)
        raw = values()
        sequence.prompt_values.append(raw)
        if wanted is not None:
            self._add_prompt_logprobs(sequence, logits, wanted)
        sequence.num_fed += len(ids)
        scored = sequence.num_fed - start
        if start == 0:
            raw = np.concatenate(sequence.prompt_values)  # with what the prefix cache restored
        if not sequence.prompt_done:
            return StepOutput(Phase.PROMPT, start, scored, raw, self._layout)
        best = logits[-1].max(dim=-1)
        if not bool(torch.isfinite(best.values)):
            raise EngineError("the model's logits are not finite")
        self._store_prefix(sequence, row)
        self._set_logits(sequence, logits[-1], int(best.indices))
        self.rows.promote(sequence)
        logprobs = None if sequence.prompt_logprobs is None else tuple(sequence.prompt_logprobs)
        return StepOutput(
            Phase.PROMPT, start, scored, raw, self._layout, final=True, prompt_logprobs=logprobs
        )

    # --- details ---------------------------------------------------------------------------------------------------

    def _reading(self, spans: list[RowSpan]) -> "_Reading":
        return _Reading(self._runtime, spans)

    @staticmethod
    def _set_logits(sequence: Sequence, logits: torch.Tensor, greedy: int) -> None:
        sequence.greedy_next = greedy if sequence.sampler.is_plain_greedy else None
        sequence.logits = None if sequence.greedy_next is not None else logits

    def _add_prompt_logprobs(self, sequence: Sequence, logits: torch.Tensor, top: int) -> None:
        """Each position's logits judge the prompt's *next* token; the first token has none."""
        if sequence.prompt_logprobs is None:
            sequence.prompt_logprobs = [None]
        next_ids = list(
            sequence.request.prompt_ids[sequence.num_fed + 1 : sequence.num_fed + 1 + len(logits)]
        )
        for judged in with_logprobs(logits[: len(next_ids)], next_ids, top):
            sequence.prompt_logprobs.append(sequence.describe(judged))

    @property
    def _layout(self) -> tuple[Monitor, ...]:
        """Whose raw values a pass yields, in that order."""
        return self._runtime.bank.monitors

    def _restore_prefix(self, sequence: Sequence, row: int) -> None:
        sequence.monitor_set = self._runtime.bank.digest
        if sequence.request.sampling.prompt_logprobs is not None:
            return  # every position's logits are asked for
        for block in self.prefix_cache.find(sequence.request.prompt_ids, sequence.monitor_set):
            self._forward.cache.write(row, sequence.num_fed, block.states)
            sequence.prompt_values.append(block.values)
            sequence.num_fed += BLOCK

    def _store_prefix(self, sequence: Sequence, row: int) -> None:
        if sequence.monitor_set != self._runtime.bank.digest:
            return  # the monitors were exchanged half-way: the columns differ
        values = np.concatenate(sequence.prompt_values)
        sequence.prompt_values.clear()
        for key, start in self.prefix_cache.missing(sequence.request.prompt_ids, sequence.monitor_set):
            block = slice(start, start + BLOCK)
            states = self._forward.cache.read(row, block.start, block.stop)
            self.prefix_cache.store(key, Block(states, values[block].copy()))


class _Reading:
    """A forward pass during which the runtime reads and steers; yields a function that gives the raw values [n_rows, n_columns]."""

    def __init__(self, runtime: Runtime, spans: list[RowSpan]) -> None:
        self._runtime = runtime
        self._spans = spans

    def __enter__(self) -> Callable[[], NDArray[np.float32]]:
        self._runtime.begin(self._spans)
        return self._values

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._runtime.end()  # a pass that failed leaves nothing behind

    def _values(self) -> NDArray[np.float32]:
        values: NDArray[np.float32] = self._runtime.end().cpu().numpy()
        return values


def _as_engine_error(error: Exception) -> EngineError:
    """Only the kind of the error is told: its text may hold the request's. The cause stays attached, for the log."""
    if isinstance(error, EngineError):
        return error
    failure = EngineError(f"the model failed: {type(error).__name__}")
    failure.__cause__ = error
    if isinstance(error, torch.OutOfMemoryError):
        error.__traceback__ = None  # its frames hold what there is too little of
        torch.cuda.empty_cache()
    return failure
