"""Recompute what became of a response from its recorded scores: same scores, same decisions.

The decider that decides live decides here, too. What is skipped is only what provably changes nothing: rules that the
recorded scores rule out (see `bounds`), and with them, as a rule, all tokens of a harmless response.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as with_changes
from datetime import datetime

from guard.bounds import Bounds
from guard.decider import Decider
from guard.policy import Policy
from guard.types import Advice, Answer, Decision, Escalate, Outcome, Phase, Score, StepScores, Subject

SeriesByMonitor = Mapping[str, Sequence[Score]]
LostByPhase = Mapping[Phase, Mapping[str, str]]
"""Why monitors had no finite score, by name (see `StepScores.lost`)."""

Advise = Callable[[Escalate, Phase, int], Advice]
"""What came of asking for a second opinion on a match at a token of a phase."""


def nobody_advises(_: Escalate, phase: Phase, token: int) -> Advice:
    """The response goes on, and its outcome says that somebody would have been asked."""
    return Advice(Answer.UNKNOWN)


def replay(
    policy: Policy,
    subject: Subject,
    prompt_series: SeriesByMonitor,
    response_series: SeriesByMonitor,
    now: datetime,
    *,
    rollout_bucket: float | None = None,
    advise: Advise = nobody_advises,
    num_prompt: int | None = None,
    num_response: int | None = None,
    prompt_complete: bool = True,
    lost: LostByPhase | None = None,
) -> Outcome:
    """Decide a recorded response under a policy: the one of that time, or a candidate.

    `num_prompt` and `num_response` are the tokens of each phase; None: as many as the longest series has. A series
    that is shorter is missing from there on; a monitor without a series is missing altogether. Both are failures of
    the rules that read it. A prompt that is not complete was cut off before its rules were decided.
    Nobody is asked for second opinions: `advise` tells what came of it then. `lost`: why scores are not there; it changes
    no decision, only the reason that is told.
    """
    num_tokens = {
        Phase.PROMPT: _longest(prompt_series) if num_prompt is None else num_prompt,
        Phase.RESPONSE: _longest(response_series) if num_response is None else num_response,
    }
    bounds = Bounds({Phase.PROMPT: prompt_series, Phase.RESPONSE: response_series}, num_tokens)
    busy = tuple(rule for rule in policy.rules if not bounds.is_idle(rule))
    if not busy:
        return Outcome()
    decider = with_changes(policy, rules=busy).decider(subject, now=now, rollout_bucket=rollout_bucket)
    why = lost or {}
    prompt = StepScores(
        Phase.PROMPT,
        0,
        num_tokens[Phase.PROMPT],
        prompt_series,
        final=prompt_complete,
        lost=why.get(Phase.PROMPT, {}),
    )
    _decide(decider, prompt, advise)
    if not prompt_complete:
        return decider.outcome
    read = {
        name: response_series.get(name, ()) for phase, name in decider.monitors if phase is Phase.RESPONSE
    }
    can_fail = not all(map(bounds.can_judge, busy))
    for token in range(num_tokens[Phase.RESPONSE]):
        if decider.ended or (decider.all_matched and not can_fail):
            break  # nothing that follows changes the outcome
        scores = {name: series[token : token + 1] for name, series in read.items()}
        step = StepScores(Phase.RESPONSE, token, 1, scores, lost=why.get(Phase.RESPONSE, {}))
        _decide(decider, step, advise)
    return decider.outcome


def _decide(decider: Decider, step: StepScores, advise: Advise) -> None:
    decision = decider.decide(step)
    if decider.pending:
        decider.resolve({e.rule: advise(e, decision.phase, decision.token) for e in _questions(decision)})


def _questions(decision: Decision) -> list[Escalate]:
    return [effect for effect in decision.effects if isinstance(effect, Escalate)]


def _longest(series: SeriesByMonitor) -> int:
    return max(map(len, series.values()), default=0)
