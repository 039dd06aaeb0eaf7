"""One choice of one request, from the engine to what may leave. READ THIS FILE FIRST.

    engine step -> scores -> decision (-> second opinion -> decision) -> effects -> events

Everything that generates, on every endpoint, streamed or not, goes through `guarded`. The promise it keeps:
a token is released only after its own activations were scored and every rule was decided on them.
"""

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from math import inf
from typing import Literal, Protocol, assert_never

from guard.decider import Decider
from guard.types import Advice, Answer, Decision, Emit, Escalate, Hold, Phase, Say, Steer, Stop
from server.engines.base import Engine, EngineRequest, FinishReason, SteerCommand, StepOutput, Token
from server.scoring import Scorer


class LeakPreventedError(Exception):
    """A token was about to leave before it was scored. Never expected; the request is ended and an alarm raised."""


# --- events: what may leave, in order: Opened (Delta | Said)* Closed --------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opened:
    """The prompt was decided on and the model may answer. A choice that is stopped on its prompt never opens."""

    step: StepOutput  # the prompt's last, with its log-probabilities where they were asked for


@dataclass(frozen=True, slots=True)
class Delta:
    """Tokens that may leave."""

    tokens: tuple[Token, ...]

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)


@dataclass(frozen=True, slots=True)
class Said:
    """The guard speaks instead of the model."""

    text: str
    refusal: bool


@dataclass(frozen=True, slots=True)
class Closed:
    """The choice is over: by the model (`finish`) or by the guard (`stop`), in which phase, after how many tokens."""

    finish: FinishReason | None
    stop: Stop | None
    phase: Phase
    num_completion_tokens: int
    by_stop_string: bool = (
        False  # the model's text was cut at one; else STOP is an end-of-sequence or stop token
    )


Event = Opened | Delta | Said | Closed


# --- the pipeline ---------------------------------------------------------------------------------------------------


Cut = Literal["client_gone", "client_stalled", "deadline"]
"""Why a choice was cut off before its end."""


class Observer(Protocol):
    """Told of everything that happens to a choice: metrics and the audit record are made of it."""

    def stepped(self, step: StepOutput) -> None: ...

    def decided(self, decision: Decision, score_s: float, decide_s: float) -> None:
        """What a step led to; how long it took to make scores of its values, and to decide on them."""
        ...

    def resolved(self, decision: Decision) -> None:
        """Second opinions came in; `decision` follows from them."""
        ...

    def released(self, num_tokens: int) -> None: ...

    def steered(self, vector: str, for_tokens: int) -> None: ...

    def cut(self, why: Cut) -> None:
        """The choice is about to be cut off, if it has not ended by then."""
        ...

    def ended(self, closed: Closed | None, error: BaseException | None) -> None:
        """Called exactly once, however the choice ends. `closed` is None if it was cut off (client gone, engine failed)."""
        ...


class Adviser(Protocol):
    """Whom a choice's rules ask for a second opinion."""

    def heard(self, tokens: tuple[Token, ...]) -> None:
        """The next part of the reply, as far as its text has settled; whether it may leave or not."""
        ...

    async def advise(self, decision: Decision) -> Mapping[str, Advice]:
        """What came of each question that the decision asks, by rule, within its deadline. Never raises for a target's fault."""
        ...


class NoAdviser:
    """Of choices whose rules ask nobody."""

    def heard(self, tokens: tuple[Token, ...]) -> None:
        pass

    async def advise(self, decision: Decision) -> Mapping[str, Advice]:
        questions = [effect for effect in decision.effects if isinstance(effect, Escalate)]
        return {question.rule: Advice(Answer.ERROR, reason="no_adviser") for question in questions}


@dataclass(frozen=True, slots=True)
class Choice:
    """One response to produce: what the engine runs, how it is scored, who decides, who watches, who is asked."""

    index: int
    request: EngineRequest
    scorer: Scorer
    decider: Decider
    observer: Observer
    adviser: Adviser = field(default_factory=NoAdviser)
    budget_s: float = inf  # to score and decide one step


async def guarded(engine: Engine, choice: Choice, clock: Callable[[], float]) -> AsyncGenerator[Event, None]:
    """Generate one choice under its policy.

    Closing the generator early aborts the request. Raises what the engine raises; nothing held is released then.
    """
    held, judge = _Held(), _Judge(choice, clock)
    closed: Closed | None = None
    error: BaseException | None = None
    try:
        async with aclosing(engine.generate(choice.request)) as steps:
            async for step in steps:
                choice.observer.stepped(step)
                choice.adviser.heard(step.tokens)
                held.take(step)
                for decision in await judge.decide(step):
                    for event in _apply(decision, engine, choice, held):
                        if isinstance(event, Closed):
                            closed = event
                        else:
                            yield event
                if closed is None and step.finish is not None:
                    # an end-of-sequence token is not scored, what completes a stop string is
                    cut = step.finish is FinishReason.STOP and step.num_scored > 0
                    closed = Closed(step.finish, None, Phase.RESPONSE, held.num_generated, by_stop_string=cut)
                if closed is not None:
                    break
                if step.final:
                    yield Opened(step)
        if closed is not None:  # the engine has let go of the request before the client hears that it is over
            yield closed
    except BaseException as caught:
        error = caught
        raise
    finally:
        choice.observer.ended(closed, error)


def _apply(decision: Decision, engine: Engine, choice: Choice, held: "_Held") -> Iterator[Event]:
    """Do what a decision asks for. Effects are a closed list: a new one that is forgotten here is a type error."""
    for effect in decision.effects:
        match effect:
            case Emit(upto):
                if tokens := held.release(upto):
                    choice.observer.released(len(tokens))
                    yield Delta(tokens)
            case Hold() | Escalate():
                pass  # nothing leaves; `_Judge` asks, and what follows comes as the next decision
            case Say(text, refusal):
                yield Said(text, refusal)
            case Steer(_, vector, strength, for_tokens):
                engine.steer(choice.request.request_id, SteerCommand(vector, strength, for_tokens))
                choice.observer.steered(vector, for_tokens)
            case Stop():
                yield Closed(None, effect, decision.phase, held.num_generated)
            case _:
                assert_never(effect)


class _Judge:
    """Scores and decides the steps of one choice, each within its budget."""

    def __init__(self, choice: Choice, clock: Callable[[], float]) -> None:
        self._choice = choice
        self._clock = clock
        self._overran = False  # deciding the last step took longer than the budget

    async def decide(self, step: StepOutput) -> list[Decision]:
        """The decisions that one step asks for: on its tokens, on what second opinions say of them, and, where the
        response ends and nothing stops it, on the rest.

        While a second opinion is awaited the engine isn't asked for more, so this choice's row pauses and no other does.
        """
        decisions: list[Decision] = []
        decider, choice = self._choice.decider, self._choice
        if step.num_scored:
            decisions.append(self._judge(step))
            if decider.pending:
                decisions.append(decider.resolve(await choice.adviser.advise(decisions[0])))
                choice.observer.resolved(decisions[1])
        if step.finish is not None and not decider.ended:
            decisions.append(decider.finish())
        return decisions

    def _judge(self, step: StepOutput) -> Decision:
        """Late scores are as good as missing. A decision that is late stands, for it was made; the next is not waited for."""
        choice, started = self._choice, self._clock()
        scores = choice.scorer.score(step)
        scored = self._clock()
        if self._overran or scored - started > choice.budget_s:
            scores = choice.scorer.late(step)
        decision = choice.decider.decide(scores)
        decided = self._clock()
        self._overran = decided - started > choice.budget_s
        choice.observer.decided(decision, scored - started, decided - scored)
        return decision


class _Held:
    """Tokens that were generated and may not leave yet; and the run-time check that none leaves unscored."""

    def __init__(self) -> None:
        self._tokens: list[Token] = []  # settled and not released
        self._num_released = 0
        self.num_generated = 0  # response tokens fed, and so scored

    def take(self, step: StepOutput) -> None:
        self._tokens.extend(step.tokens)
        if step.phase is Phase.RESPONSE:
            self.num_generated += step.num_scored

    def release(self, upto: int) -> tuple[Token, ...]:
        """Take out the tokens with index below `upto` that have settled."""
        count = max(0, min(upto - self._num_released, len(self._tokens)))
        if self._num_released + count > self.num_generated:
            raise LeakPreventedError(f"token {self._num_released + count - 1} of {self.num_generated} scored")
        tokens = tuple(self._tokens[:count])
        del self._tokens[:count]
        self._num_released += count
        return tokens
