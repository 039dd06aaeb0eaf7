"""The in-process engine: requests in, steps out, one model thread."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from monitors.artifacts import MonitorSet
from monitors.base import Monitor
from monitors.norms import NormSummary
from monitors.runtime import Runtime
from monitors.steering import Edit
from monitors.stopwatch import PassTimes
from monitors.types import HookPoint
from server.engines.base import (
    EngineBusy,
    EngineDead,
    EngineError,
    EngineInfo,
    EngineLoad,
    EngineRequest,
    EngineStopped,
    Grammar,
    RequestRefused,
    SteerCommand,
    StepOutput,
)
from server.engines.detokenize import SettledText, stream_decoder
from server.engines.transformers.forward import Forward, choose_mask_form
from server.engines.transformers.installed import Installed
from server.engines.transformers.kv import SlotCache
from server.engines.transformers.model import LoadedModel, describe_token
from server.engines.transformers.prefix_cache import BLOCK, PrefixCache
from server.engines.transformers.sampling import Sampler
from server.engines.transformers.sequence import ActiveSteering, Sequence
from server.engines.transformers.stepper import Stepper, StepResult
from server.engines.transformers.thread import StepThread
from server.grammars.compiler import GrammarCompiler
from server.grammars.matching import CompiledGrammar
from server.stacks import raised_at

_log = structlog.get_logger()
_LOOKS = 30  # at a step, before it counts as hung
_STOP_S = 5.0  # for the last step to end
_HUNG = "the engine hangs in a step"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Sizes of the engine; memory for the KV cache is `max_batch * max_context` positions."""

    max_batch: int = 16
    max_context: int | None = None  # tokens; None: the model's own, at most 4,096
    max_waiting: int = 256  # requests; one more is refused
    prefill_chunk: int = 256  # prompt tokens fed per step, between decode steps
    prefix_cache_tokens: int = 16_384  # 0: off
    exchange_grace_s: float = 5.0  # how long exchanged monitors stay for requests on their way to the engine
    step_timeout_s: float = 30.0  # a step that takes longer has hung: who waits for it is failed


@dataclass(slots=True, eq=False)
class _Run:
    """A request on its way through the engine, and the mailbox of its consumer."""

    sequence: Sequence
    outbox: deque[StepResult] = field(default_factory=deque)
    waiter: asyncio.Future[None] | None = None
    admitted: bool = False  # it has a row (or is being given one)
    ready: bool = False  # the consumer has asked for the next output
    asked: float = 0.0  # when it did so
    over: bool = False  # ended, failed or abandoned

    @property
    def is_due(self) -> bool:
        """Whether it takes part in the next step: its consumer asks for it, and what it may draw is known."""
        return self.admitted and self.ready and not self.sequence.waits_for_grammar


class TransformersEngine:
    """Continuous batching over a slot-KV cache, in lockstep with the consumers (see `Engine`)."""

    def __init__(self, loaded: LoadedModel, monitors: MonitorSet, settings: EngineSettings) -> None:
        """Prepare to serve. Raises EngineError where the architecture can't be served, HookPointError where it can't be read."""
        model, blocks = loaded.model, loaded.blocks
        max_context = min(loaded.max_positions, settings.max_context or min(loaded.max_positions, 4096))
        num_layers = len(blocks.layers)
        mask_form = choose_mask_form(model, num_layers=num_layers)
        cache = SlotCache(num_layers=num_layers, num_slots=settings.max_batch, capacity=max_context + 1)
        self._wake = asyncio.Event()
        self._runtime = Runtime(
            blocks, monitors.bank(model.device), monitors.vectors, on_failed_read=_log_failed_read
        )
        self._installed = Installed(
            self._runtime, monitors, grace_s=settings.exchange_grace_s, wake=self._wake.set
        )
        self._stepper = Stepper(
            Forward(model, cache, mask_form),
            self._runtime,
            eos_token_ids=loaded.eos_token_ids,
            prefill_chunk=settings.prefill_chunk,
            max_context=max_context,
            prefix_cache=PrefixCache(settings.prefix_cache_tokens // BLOCK),
        )
        self._loaded = loaded
        self._grammars = GrammarCompiler(
            loaded.tokenizer, num_ids=loaded.vocab_size, eos_token_ids=loaded.eos_token_ids
        )
        self._describe = describe_token(loaded.tokenizer)
        self._settings = settings
        self.info = EngineInfo(
            model_id=loaded.model_id,
            max_context=max_context,
            max_batch=settings.max_batch,
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
            fingerprint=loaded.fingerprint,
        )
        self._waiting: deque[_Run] = deque()
        self._running: dict[str, _Run] = {}  # every request that is not over, by id
        self._thread = StepThread("interlock-engine")
        self._loop_task: asyncio.Task[None] | None = None
        self._watch_task: asyncio.Task[None] | None = None
        self._dead: str | None = None
        self._step_started: float | None = None
        self._step_ended = 0.0  # the last one
        self._has_hung = False  # the present step takes too long

    # --- the Engine protocol ---------------------------------------------------------------------------------------

    @property
    def monitors(self) -> tuple[Monitor, ...]:
        return self._installed.current.monitors

    @property
    def is_alive(self) -> bool:
        return self._loop_task is not None and not self._loop_task.done()

    async def start(self) -> None:
        self._loop_task = asyncio.create_task(self._run_steps(), name="interlock-engine-steps")
        self._watch_task = asyncio.create_task(self._watch_steps(), name="interlock-engine-watch")

    async def stop(self) -> None:
        if tasks := [task for task in (self._loop_task, self._watch_task) if task is not None]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)  # if one had failed, that was logged when it happened
        stopped = EngineStopped("the engine was stopped")
        self._fail_all(stopped)
        self._installed.cancel(stopped)
        if not await asyncio.to_thread(self._thread.stop, _STOP_S):  # consumers were told before
            _log.error("the engine's last step hangs; it is left behind")
        await asyncio.to_thread(self._grammars.close)
        self._runtime.close()

    async def compile(self, source: str) -> Grammar:
        if self._dead is not None:
            raise EngineDead(self._dead)
        return await self._grammars.compile(source)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[StepOutput, None]:
        run = self._enqueue(request)
        try:
            while True:
                output = await self._next(run)
                yield output
                if output.finish is not None:
                    return
        finally:
            self._abandon(run)

    def steer(self, request_id: str, command: SteerCommand) -> None:
        vector = self._installed.vectors[command.vector]
        run = self._running.get(request_id)
        if run is not None and not run.over:
            edit = Edit(vector, command.strength)
            run.sequence.steer(ActiveSteering(edit, command.for_tokens or None))

    def abort(self, request_id: str) -> None:
        if run := self._running.get(request_id):
            run.outbox.append(EngineError("aborted"))
            self._notify(run)
            self._abandon(run)

    async def install(self, monitors: MonitorSet) -> None:
        """Exchange the monitors and vectors while traffic flows. Requests that run keep their monitors until they end.

        A vector that comes back under its old name is the new one for them, too. Raises HookPointError, and EngineDead.
        """
        if not self.is_alive:
            raise EngineDead(self._dead or "the engine was not started")
        await self._installed.exchange(monitors)

    def watch_passes(self, told: Callable[[PassTimes], None]) -> None:
        self._runtime.on_pass = told

    def row_norms(self) -> Mapping[HookPoint, NormSummary]:
        return self._runtime.row_norms()

    def load(self) -> EngineLoad:
        return EngineLoad(
            running=len(self._stepper.rows),
            waiting=len(self._waiting),
            kv_tokens=self._stepper.rows.kv_tokens,
            kv_capacity=self._settings.max_batch * self.info.max_context,
            step_age_s=self._step_age_s(),
            cached_tokens=len(self._stepper.prefix_cache) * BLOCK,
        )

    def _step_age_s(self) -> float:
        due = [run.asked for run in self._running.values() if run.is_due]
        if self._waiting and self._stepper.rows.can_admit(self._ready()):
            due.append(self._waiting[0].asked)
        if self._step_started is not None:  # whoever asked for it may be gone
            due.append(self._step_started)
        return time.monotonic() - max(self._step_ended, min(due)) if due else 0.0

    # --- the loop --------------------------------------------------------------------------------------------------

    async def _run_steps(self) -> None:
        try:
            while True:
                self._free_abandoned()
                self._installed.advance(self._running.keys())
                self._admit_waiting()
                ready = self._ready()
                if not ready:
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                self._step_started = time.monotonic()
                results = await asyncio.wrap_future(self._thread.submit(self._stepper.step, ready))
                self._step_started, self._step_ended = None, time.monotonic()
                self._has_hung = False
                self._publish(results)
                await self._let_consumers_decide()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            _log.error("the engine's loop ended", error=type(error).__name__, at=raised_at(error))
            self._fail_all(EngineDead(f"the engine's loop ended: {type(error).__name__}"))
            if not isinstance(error, Exception):
                raise

    async def _watch_steps(self) -> None:
        """Fail who waits while a step hangs; it may still end, and then all goes on.

        Its time is counted in looks: a process that was stopped for a while has not looked, and its model has not hung.
        """
        seen, looks = self._step_started, 0
        while True:
            await asyncio.sleep(self._settings.step_timeout_s / _LOOKS)
            looks = looks + 1 if self._step_started is not None and self._step_started == seen else 0
            seen = self._step_started
            if looks < _LOOKS:
                continue
            if not self._has_hung:
                self._has_hung = True
                _log.error("a step of the engine hangs", for_s=self._settings.step_timeout_s)
            for run in self._running.values():
                if run.ready:
                    run.outbox.append(EngineDead(_HUNG))
                    self._notify(run)

    def _ready(self) -> set[Sequence]:
        return {run.sequence for run in self._running.values() if run.is_due}

    def _free_abandoned(self) -> None:
        for run in [run for run in self._running.values() if run.over]:
            self._stepper.rows.remove(run.sequence)
            del self._running[run.sequence.request.request_id]

    def _admit_waiting(self) -> None:
        if self._waiting and self._stepper.rows.can_admit(self._ready()):
            run = self._waiting.popleft()
            run.admitted = True
            self._stepper.rows.admit(run.sequence)

    def _publish(self, results: list[tuple[Sequence, StepResult]]) -> None:
        by_sequence = {run.sequence: run for run in self._running.values()}
        for sequence, result in results:
            run = by_sequence.get(sequence)
            if run is None:
                continue
            run.ready = False
            run.outbox.append(result)
            self._notify(run)

    async def _let_consumers_decide(self) -> None:
        """Give the consumers that were just served their turn before the next step; one that takes longer pauses its own row only."""
        for _ in range(3):
            await asyncio.sleep(0)
            if all(run.ready for run in self._running.values()):
                return

    # --- mailboxes -------------------------------------------------------------------------------------------------

    def _enqueue(self, request: EngineRequest) -> _Run:
        if self._dead is not None:
            raise EngineDead(self._dead)
        if self._has_hung:
            raise EngineDead(_HUNG)
        if request.request_id in self._running:
            raise RequestRefused(f"request id {request.request_id!r} is already running")
        if len(self._waiting) >= self._settings.max_waiting:
            raise EngineBusy(f"the queue of {self._settings.max_waiting} requests is full")
        run = _Run(self._sequence(request))
        self._running[request.request_id] = run
        self._waiting.append(run)
        return run

    def _sequence(self, request: EngineRequest) -> Sequence:
        ids, sampling = list(request.prompt_ids), request.sampling
        if not ids:
            raise RequestRefused("the prompt is empty")
        if not 0 <= min(ids) <= max(ids) < self._loaded.vocab_size:
            limit = self._loaded.vocab_size - 1
            raise RequestRefused(f"the prompt has a token id outside the vocabulary (0 to {limit})")
        room = self.info.max_context - len(ids)
        if room < (sampling.max_tokens or 1) and not (room == 0 and sampling.max_tokens == 0):
            raise RequestRefused(f"the prompt's {len(ids)} tokens leave no room for the response")
        named = [*sampling.logit_bias, *sampling.stop_token_ids]
        if any(not 0 <= token_id < self._loaded.vocab_size for token_id in named):
            raise RequestRefused("logit_bias or stop_token_ids names a token id outside the vocabulary")
        tokenizer = self._loaded.tokenizer
        matching = None
        if sampling.grammar is not None:
            assert isinstance(sampling.grammar, CompiledGrammar), "a grammar of another engine"  # noqa: S101
            matching = sampling.grammar.begin(self._wake_soon)
        return Sequence(
            request=request,
            max_tokens=room if sampling.max_tokens is None else sampling.max_tokens,
            sampler=Sampler(sampling, ids, self._loaded.model.device, matching),
            text=SettledText(stream_decoder(tokenizer, ids), sampling.stop),
            describe=self._describe,
        )

    def _wake_soon(self) -> None:
        """From any thread."""
        if self._loop_task is not None:
            with suppress(RuntimeError):  # its loop is closed
                self._loop_task.get_loop().call_soon_threadsafe(self._wake.set)

    async def _next(self, run: _Run) -> StepOutput:
        run.ready, run.asked = True, time.monotonic()
        self._wake.set()
        while not run.outbox:
            run.waiter = asyncio.get_running_loop().create_future()
            await run.waiter
        result = run.outbox.popleft()
        if isinstance(result, EngineError):
            raise result
        return result

    @staticmethod
    def _notify(run: _Run) -> None:
        if run.waiter is not None and not run.waiter.done():
            run.waiter.set_result(None)

    def _abandon(self, run: _Run) -> None:
        """The consumer is gone or has all it will get. The row is freed between steps, never under one."""
        run.over = True
        run.ready = False
        if not run.admitted and run in self._waiting:
            self._waiting.remove(run)
        self._wake.set()

    def _fail_all(self, error: EngineError) -> None:
        self._dead = str(error)
        for run in list(self._running.values()):
            run.outbox.append(error)
            self._notify(run)
        self._running.clear()
        self._waiting.clear()


def _log_failed_read(point: HookPoint, error: Exception) -> None:
    _log.error("monitors could not be read", hook_point=str(point), error=type(error).__name__)
