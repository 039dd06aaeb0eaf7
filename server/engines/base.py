"""The seam between the pipeline and whatever runs the model."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from guard.types import Phase
from monitors.artifacts import MonitorSet
from monitors.base import Monitor
from monitors.norms import NormSummary
from monitors.stopwatch import PassTimes
from monitors.types import HookPoint


class FinishReason(StrEnum):
    """Why the engine ended a response by itself."""

    STOP = "stop"  # end-of-sequence token, stop token or stop string
    LENGTH = "length"  # max_tokens or the model's context


class Grammar(Protocol):
    """What a reply is held to, token by token: made by the engine that runs it (`Engine.compile`), and known to it alone."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one response is drawn. Defaults are OpenAI's."""

    max_tokens: int | None = None  # None: up to the model's context
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    seed: int | None = None  # the same seed gives the same text, whatever the neighbours in the batch
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None  # None: none; k: the sampled token's and the top k
    prompt_logprobs: int | None = None  # the same for every prompt token (`echo` with `logprobs`)
    grammar: Grammar | None = None  # only tokens that it allows are drawn, the end of the reply among them


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One response to generate: a choice of a request. Choices of one request differ in `request_id` and seed."""

    request_id: str
    prompt_ids: Sequence[int]
    sampling: SamplingParams


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its log-probability (nats), from the raw logits before grammar, penalties and temperature."""

    token_id: int
    text: str
    token_bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Token:
    """A generated token whose text is settled: it is complete UTF-8 and cannot turn out to be a stop string.

    `text` is what this token adds to the reply (it may be empty); the texts, concatenated, are the reply.
    """

    token_id: int
    text: str
    logprob: TokenLogprob | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one engine step did for one request.

    Prompt: one output per prefill chunk, in order; `final` on the last; no tokens.
    Response: one output per generated token *after the forward pass that it was fed into*, so that `values`
    are that token's own. `num_scored` is 0 only on an output that merely ends the response (an end-of-sequence
    token is never shown, so it needs no score). `tokens` are those that settled at this step; they may trail
    the scored ones (incomplete UTF-8, a possible stop string), never lead them.
    """

    phase: Phase
    start: int  # index of the first scored token, within its phase
    num_scored: int
    values: NDArray[np.float32] | None  # [num_scored, len(monitors)] raw values; None: no monitors
    monitors: tuple[
        Monitor, ...
    ] = ()  # whose raw values the columns are; the same object until monitors are exchanged
    final: bool = False  # prompt: this chunk completes it
    tokens: tuple[Token, ...] = ()
    prompt_logprobs: tuple[tuple[TokenLogprob, tuple[TokenLogprob, ...]] | None, ...] | None = None
    finish: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class SteerCommand:
    """Steering of one request from its next forward pass on. It replaces an earlier command for the same vector."""

    vector: str
    strength: float
    for_tokens: int = 0  # 0: until the end of the response


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the server needs to know about the model that an engine runs."""

    model_id: str
    max_context: int  # tokens, prompt and response together
    max_batch: int
    dtype: str
    device: str
    fingerprint: str  # of the model; monitors are bound to it


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine holds right now. All zero when it is idle: a leak shows here."""

    running: int
    waiting: int
    kv_tokens: int  # positions held by running requests
    kv_capacity: int
    step_age_s: float  # seconds that a step runs, or that one is due and does not come; 0 while none is due
    cached_tokens: int = 0  # positions of prefixes kept for later prompts


class Engine(Protocol):
    """Runs the model. Every method is called from the event loop's thread.

    **Lockstep.** A request's next step begins only after the consumer has asked for it (`__anext__`), so a decision
    taken on one output, and the `steer` or `abort` it leads to, is in force before the next token is sampled. A slow
    consumer holds up its own request only.
    """

    info: EngineInfo

    @property
    def monitors(self) -> tuple[Monitor, ...]:
        """The installed ones."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether it was started and still runs steps."""
        ...

    async def compile(self, source: str) -> Grammar:
        """What replies can be held to, from a grammar's source (server/grammars/source.py).

        Raises RequestRefused, which tells what is wrong with it without quoting it, EngineBusy, EngineDead, EngineError.
        """
        ...

    def generate(self, request: EngineRequest) -> AsyncGenerator[StepOutput, None]:
        """Run one request. Closing the generator early frees everything that it held before the next step.

        Raises RequestRefused, EngineBusy, EngineDead, EngineError.
        """
        ...

    def steer(self, request_id: str, command: SteerCommand) -> None:
        """Set steering of a running request. Raises KeyError for an unknown vector; an ended request is ignored."""
        ...

    def abort(self, request_id: str) -> None:
        """End a request before its next step. An unknown or ended request is ignored."""
        ...

    async def install(self, monitors: MonitorSet) -> None:
        """Exchange the monitors and vectors while traffic flows. Requests that run keep theirs until they end."""
        ...

    def load(self) -> EngineLoad: ...

    def watch_passes(self, told: Callable[[PassTimes], None]) -> None:
        """Have `told` hear of each forward pass, in the thread that runs the model: what reading and steering took."""
        ...

    def row_norms(self) -> Mapping[HookPoint, NormSummary]:
        """log ||x|| at the monitors' hook points, sampled since they were installed. May wait for the device."""
        ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class EngineError(Exception):
    """The engine failed one request; others are unharmed."""


class RequestRefused(EngineError):  # noqa: N818  # it is the request that is wrong, not the engine
    """This engine can't run this request; the text is for the client."""


class EngineBusy(EngineError):  # noqa: N818
    """The engine's queue is full."""


class EngineDead(EngineError):  # noqa: N818
    """The engine runs no more steps; the server is not ready."""


class EngineStopped(EngineDead):
    """The engine was told to end, as the server does."""
