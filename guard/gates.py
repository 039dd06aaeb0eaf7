"""What evidence an enforced action needs. A rule that lacks some is refused, unless it says in writing why it may act."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from guard.actions.base import Action
from guard.actions.refusing import Refusing
from guard.actions.steer import Steer
from guard.budgets import is_calibrated
from guard.expressions import Condition, calls
from guard.types import Gate, MonitorInfo, Severity, VectorInfo


@dataclass(frozen=True, slots=True)
class Refusal:
    """One gate that does not open."""

    gate: Gate
    code: str
    message: str
    hint: str


_OVERRIDE = "or give the rule an override: {reason: ...}"


def refusals(
    action: Action,
    condition: Condition,
    *,
    maturity: str,
    monitors: Mapping[str, MonitorInfo] | None,
    vectors: Mapping[str, VectorInfo] | None,
) -> Iterator[Refusal]:
    """The gates that an enforced rule does not pass. What is not loaded (None) is not judged.

    To escalate takes no calibration: there the scores only choose what a second opinion is asked about.
    """
    if isinstance(action, Refusing) and maturity != "stable":
        does = "blocks" if action.severity is Severity.BLOCK else "may block"
        message = f"this rule {does}, but the policy's maturity is '{maturity}'; only stable ones may"
        yield Refusal(Gate.MATURITY, "immature-block", message, f"use `mode: shadow`, {_OVERRIDE}")
    if action.severity in {Severity.BLOCK, Severity.REPLACE} and monitors is not None:
        series = dict.fromkeys(call.series for call in calls(condition))
        missing = [str(s) for s in series if not is_calibrated(monitors[s.monitor], s.scope)]
        if missing:
            message = (
                f"this rule would {action.kind} on scores without a certified budget: {', '.join(missing)}"
            )
            hint = f"calibrate the monitor on benign requests, use `mode: shadow`, {_OVERRIDE}"
            yield Refusal(Gate.CALIBRATION, "uncalibrated", message, hint)
    if action.severity > Severity.ANNOTATE and monitors is not None:
        for name in dict.fromkeys(call.series.monitor for call in calls(condition)):
            if why := monitors[name].barred:
                message = f"this rule would {action.kind} on monitor '{name}', which must not act: {why}"
                hint = f"let it log or annotate, use another monitor or `mode: shadow`, {_OVERRIDE}"
                yield Refusal(Gate.VALIDITY, "barred-monitor", message, hint)
    if isinstance(action, Steer) and vectors is not None and action.vector in vectors:
        vector = vectors[action.vector]
        if not vector.steerable:
            told = f"has the verdict '{vector.verdict}'" if vector.verdict else "was not tested"
            message = f"nothing shows that the vector '{vector.name}' steers: its causal effect {told}"
            hint = f"run the causal test, use `mode: shadow`, {_OVERRIDE}"
            yield Refusal(Gate.CAUSALITY, "not-causal", message, hint)
