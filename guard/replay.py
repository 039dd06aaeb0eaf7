"""Recompute what became of a response from its recorded scores: same scores, same decisions."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from guard.policy import Policy
from guard.types import Outcome, Phase, Score, StepScores, Stop, Subject

SeriesByMonitor = Mapping[str, Sequence[Score]]


def replay(
    policy: Policy,
    subject: Subject,
    prompt_series: SeriesByMonitor,
    response_series: SeriesByMonitor,
    now: datetime,
    *,
    rollout_bucket: float | None = None,
) -> Outcome:
    """Decide a recorded response under a policy: the one of that time, or a candidate.

    A series that is shorter than the longest of its phase is missing from there on; a monitor without a series
    is missing altogether. Both are failures of the rules that read it.
    """
    decider = policy.decider(subject, now=now, rollout_bucket=rollout_bucket)
    decision = decider.decide(StepScores(Phase.PROMPT, 0, _longest(prompt_series), prompt_series, final=True))
    for token in range(_longest(response_series)):
        if any(isinstance(effect, Stop) for effect in decision.effects):
            return decider.outcome
        scores = {name: series[token : token + 1] for name, series in response_series.items()}
        decision = decider.decide(StepScores(Phase.RESPONSE, token, 1, scores))
    return decider.outcome


def _longest(series: SeriesByMonitor) -> int:
    return max(map(len, series.values()), default=0)
