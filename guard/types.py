"""The vocabulary of the guard: what comes in (scores), what goes out (decisions made of effects).

Standard library only. Nothing here knows of torch, HTTP or the clock, so that any decision can be
recomputed from a recorded series of scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any


class Phase(StrEnum):
    """Where a token stands: in what the client sent, or in what the model answers."""

    PROMPT = "prompt"
    RESPONSE = "response"


class Scope(StrEnum):
    """Which tokens a series runs over. A conversation is the prompt followed by the response, as one series."""

    PROMPT = "prompt"
    RESPONSE = "response"
    CONVERSATION = "conversation"

    @property
    def phases(self) -> tuple[Phase, ...]:
        return tuple(Phase) if self is Scope.CONVERSATION else (Phase(self.value),)


class Gate(StrEnum):
    """What an enforced action needs. A rule goes without only by an `override` with its reason."""

    MATURITY = "maturity"  # to block or escalate: a stable policy
    CALIBRATION = "calibration"  # to block or replace: monitors with a certified false-positive budget
    CAUSALITY = "causality"  # to steer: a causal test of the vector that allows it
    VALIDITY = "validity"  # to do more than log or annotate: monitors that their own evidence does not bar


class Mode(StrEnum):
    """What a rule's match does: act, be recorded only, or nothing (the rule is not evaluated)."""

    ENFORCE = "enforce"
    SHADOW = "shadow"
    OFF = "off"


class OnError(StrEnum):
    """What a missing, late or non-finite score does to an enforced rule: stop the request, or go on without the rule."""

    CLOSED = "closed"
    OPEN = "open"


class Severity(IntEnum):
    """The order of actions: the most severe enforced match wins (block > replace > escalate > steer > annotate > log)."""

    ALLOW = 0
    LOG = 1
    ANNOTATE = 2
    STEER = 3
    ESCALATE = 4
    REPLACE = 5
    BLOCK = 6


Score = float | None
"""One monitor's running score at one token. None: the token lies outside the monitor's token scope (not an error)."""


@dataclass(frozen=True, slots=True)
class StepScores:
    """The scores of consecutive tokens of one phase, as one engine step produced them.

    A prompt arrives in one or more chunks, in order; `final` marks the last one, after which the prompt
    rules are decided. A response step carries exactly one token.
    A monitor that a rule needs and that is absent here, or too short, or not finite, is a failure.
    """

    phase: Phase
    start: int  # index of the first token, within its phase
    num_tokens: int
    scores: Mapping[str, Sequence[Score]]  # monitor name -> one running score per token
    final: bool = False  # prompt: this chunk completes it
    lost: Mapping[str, str] = field(default_factory=dict)
    """Why a monitor has no finite score: `error`, `timeout` or `shed`. Of others it is `missing` or `nan`."""


# --- effects: the closed list of what a decision can ask of the pipeline -------------------------------------------


@dataclass(frozen=True, slots=True)
class Emit:
    """Response tokens with index < `upto` may leave. Never shrinks over a request."""

    upto: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Nothing new may leave yet."""


@dataclass(frozen=True, slots=True)
class Say:
    """The guard speaks in the model's place: all of the reply that follows (as a refusal, or as ordinary content)."""

    text: str
    refusal: bool


@dataclass(frozen=True, slots=True)
class Steer:
    """Apply a steering vector to this request from its next step on. Setting, not adding: repeating it is harmless."""

    rule: str
    vector: str
    strength: float
    for_tokens: int  # 0: until the end of the response


@dataclass(frozen=True, slots=True)
class Escalate:
    """Nothing new may leave before a second opinion was asked for and `Decider.resolve` was told what came of it."""

    rule: str
    to: str  # the target's name
    deadline_s: float


class StopReason(StrEnum):
    BLOCKED = "blocked"  # a rule matched
    REPLACED = "replaced"  # a rule matched and the guard answers instead
    UNAVAILABLE = "unavailable"  # the guard could not judge, and fails closed


@dataclass(frozen=True, slots=True)
class Stop:
    """End the request now; nothing that is still held may leave."""

    reason: StopReason
    code: str = "content_filter"  # content_filter | misalignment_policy_violation | interlock_unavailable


Effect = Emit | Hold | Say | Steer | Escalate | Stop


# --- decisions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Match:
    """A rule whose condition turned true, at the token where it did so for the first time."""

    rule: str
    action: str
    severity: Severity
    mode: Mode
    phase: Phase
    token: int  # index within its phase
    values: Mapping[str, float]  # the condition's numbers at that token, by their text
    override: str = ""  # why the rule may do what it otherwise may not; empty: it needs no reason


@dataclass(frozen=True, slots=True)
class Failure:
    """A rule that could not be judged at this token."""

    rule: str
    monitor: str
    reason: str  # missing | nan | error (it raised) | timeout (it was late) | shed (its breaker is open)
    mode: Mode
    on_error: OnError
    phase: Phase
    token: int


class Answer(StrEnum):
    """What came of asking for a second opinion. All but the first two are no answer."""

    ALLOW = "allow"
    BLOCK = "block"
    TIMEOUT = "timeout"  # none within the deadline
    ERROR = "error"  # not reached, refused, or not understood
    BUSY = "busy"  # not asked: as many others were being answered as the target may take at once
    BREAKER_OPEN = "breaker_open"  # not asked: the target had failed too often just before
    UNKNOWN = "unknown"  # nobody was there to ask: a replay of a response for which no answer was recorded


@dataclass(frozen=True, slots=True)
class Advice:
    """A target's answer, or why there is none."""

    answer: Answer
    seconds: float = 0.0  # waited
    reason: str = ""  # in a word: the target's own for its verdict, or what failed


@dataclass(frozen=True, slots=True)
class Opinion:
    """A second opinion on a match, and what it was taken for."""

    rule: str
    to: str
    advice: Advice
    allowed: bool
    phase: Phase
    token: int  # of the match, within its phase


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do after one step. `matches`, `failures` and `opinions` hold only what is new at this step."""

    phase: Phase
    token: int  # index, within its phase, of the last token judged
    effects: tuple[Effect, ...]
    matches: tuple[Match, ...] = ()
    failures: tuple[Failure, ...] = ()
    opinions: tuple[Opinion, ...] = ()


@dataclass(slots=True)
class Outcome:
    """What became of a request so far; the audit record and the response headers are made from it."""

    action: Severity = Severity.ALLOW
    phase: Phase | None = None  # of the match that set `action`
    token: int | None = None
    matches: list[Match] = field(default_factory=list)  # enforced
    shadow: list[Match] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    opinions: list[Opinion] = field(default_factory=list)
    unavailable: bool = False  # stopped because the guard could not judge

    @property
    def verdict(self) -> str:
        """In one word: allow, log, annotate, steer, escalate, replace, block or unavailable.

        `escalate`: a second opinion was asked for, and let the reply go on.
        """
        return "unavailable" if self.unavailable else self.action.name.lower()


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a decision is about: what a rule's `match` and `rollout` may look at. Only `request_id` and `metadata` come from the client."""

    tenant: str = "default"
    model: str = ""
    endpoint: str = "chat"
    key_id: str = ""
    request_id: str = ""  # the client may have chosen it
    decision_id: str = ""  # the server has: what `rollout: {by: request}` goes by
    metadata: Mapping[str, str] = field(default_factory=dict)
    turn: int = 1  # user messages in the request, the present one included


@dataclass(frozen=True, slots=True)
class Budget:
    """A calibrated threshold: at most a share `fpr` of benign requests has a score above it anywhere in the scope."""

    scope: Scope
    fpr: float
    threshold: float
    certified: bool
    num_benign: int | None = None  # requests that it was calibrated on; None: as many as the monitor's others


@dataclass(frozen=True, slots=True)
class MonitorInfo:
    """What a policy may know of a loaded monitor: its name, the range of its score and its calibration."""

    name: str
    low: float | None = None  # None: unbounded
    high: float | None = None
    budgets: tuple[Budget, ...] = ()  # empty: not calibrated
    num_benign: int = 0  # requests that the budgets were calibrated on
    confidence: float = 0.95  # that a certified budget is kept
    version: str = "0"  # of its artifact
    barred: str = (
        ""  # why it must not act on traffic, as in "its SAE was not accepted"; empty: nothing is against it
    )


@dataclass(frozen=True, slots=True)
class VectorInfo:
    """What a policy may know of a loaded steering vector."""

    name: str
    steerable: bool | None = None  # whether its causal test allows steering with it; None: not tested
    verdict: str = ""  # of that test, in a word


JsonObject = dict[str, Any]
