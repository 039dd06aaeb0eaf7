"""What monitors say of a text, in the shapes of OpenAI's moderation; and who may see it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import Request

from guard.types import Phase, Severity
from monitors.base import Monitor
from server.admitted import Admitted
from server.api.errors import Body, forbidden, model_not_found
from server.keys.types import Client
from server.pipeline import Choice
from server.service import Service

FLAG_FPR = 0.01
"""A category is flagged above its monitor's certified threshold for this share of benign requests, or less."""

_OPENAI_MODELS = frozenset(
    {
        "omni-moderation-latest",
        "omni-moderation-2024-09-26",
        "text-moderation-latest",
        "text-moderation-stable",
    }
)  # what clients ask for by default; the answer names the model that judged


class ScoreMissingError(Exception):
    """A monitor gave no finite score, so nothing can be said of the text."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of one text. Scores are the highest of any token, by monitor."""

    flagged: bool
    categories: dict[str, bool]
    scores: dict[str, float]

    @property
    def body(self) -> Body:
        return {
            "flagged": self.flagged,
            "categories": self.categories,
            "category_scores": self.scores,
            "category_applied_input_types": {name: ["text"] for name in self.categories},
        }


def may_see_scores(request: Request) -> bool:
    """Whether who sent a request may see monitors' names and scores. To others they would be an oracle for attacks."""
    service: Service = request.app.state.service
    client: Client = request.state.client
    return service.show_scores or client.may_debug


def check_may_see_scores(request: Request, model: str) -> None:
    """For the request's `moderation` object. Raises ApiError."""
    if not may_see_scores(request):
        raise forbidden(
            "moderation returns the monitors' scores, which this client may not see; leave it out, or have the "
            "server's operator give its key the scope 'debug'",
            "moderation",
            "scores_not_allowed",
        )
    check_moderation_model(request.app.state.service, model)


def check_moderation_model(service: Service, model: str) -> None:
    """Raises ApiError for a model that isn't served and isn't what OpenAI's clients ask for by default."""
    if model not in _OPENAI_MODELS and model not in service.served_models:
        known = ", ".join((*service.served_models, *sorted(_OPENAI_MODELS)))
        raise model_not_found(f"This moderation model does not exist here; known: {known}")


def verdict(choice: Choice, phase: Phase, monitors: Sequence[Monitor]) -> Verdict:
    """Of one choice's prompt or response. Raises ScoreMissingError.

    Flagged: by a category, or because the policy in force stopped the choice in this phase.
    """
    scores = choice.scorer.maxima(phase)
    if not all(map(math.isfinite, scores.values())):
        raise ScoreMissingError
    categories = {
        monitor.name: scores[monitor.name] > _threshold(monitor, phase)
        for monitor in monitors
        if monitor.name in scores
    }
    return Verdict(any(categories.values()) or _is_stopped(choice, phase), categories, scores)


def plain_verdict(choice: Choice, phase: Phase) -> Verdict:
    """Only whether the policy in force stops the text, which a client sees anyway."""
    stopped = _is_stopped(choice, phase)
    return Verdict(stopped, {"policy": stopped}, {"policy": float(stopped)})


def moderation_results(admitted: Admitted) -> Body:
    """The `moderation` of a chat completion: of its prompt, and of each choice's response."""
    return {
        "input": _results(admitted, admitted.choices[:1], Phase.PROMPT),
        "output": _results(admitted, admitted.choices, Phase.RESPONSE),
    }


def moderation_pair(admitted: Admitted) -> Body:
    """The `moderation` of a response, which has one output: the result itself where a chat completion has lists."""
    both = moderation_results(admitted)
    return {side: found["results"][0] if "results" in found else found for side, found in both.items()}


def _results(admitted: Admitted, choices: Sequence[Choice], phase: Phase) -> Body:
    model = admitted.subject.model
    try:
        found = [verdict(choice, phase, admitted.monitors) for choice in choices]
    except ScoreMissingError:
        return moderation_error()
    results = [{"type": "moderation_result", "model": model, **item.body} for item in found]
    return {"type": "moderation_results", "model": model, "results": results}


def moderation_error() -> Body:
    return {
        "type": "error",
        "code": "interlock_unavailable",
        "message": "A monitor gave no score that can be judged.",
    }


def _is_stopped(choice: Choice, phase: Phase) -> bool:
    outcome = choice.decider.outcome
    return outcome.phase is phase and outcome.action >= Severity.REPLACE


def _threshold(monitor: Monitor, phase: Phase) -> float:
    """Infinite without a certified threshold: a monitor that was not calibrated flags nothing."""
    thresholds = monitor.calibration.thresholds if monitor.calibration else ()
    fitting = [t for t in thresholds if t.phase == phase and t.certified and t.fpr <= FLAG_FPR]
    return max(fitting, key=lambda t: t.fpr).value if fitting else math.inf
