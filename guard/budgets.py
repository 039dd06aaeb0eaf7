"""Budgets as thresholds: what `exceeds(prompt.harm, fpr=0.001)` compares with, from the monitor's calibration."""

from collections.abc import Mapping
from math import ceil, isclose, log1p

from guard.errors import Flaw
from guard.expressions import Condition, Exceeds, bound, number_text
from guard.types import Budget, MonitorInfo, Scope


def needed_requests(fpr: float, confidence: float) -> int:
    """The fewest benign requests, all of them below the threshold, that certify a rate (reference: science, 5.1).

    2,995 for 0.1 % at 95 % confidence, 299 for 1 %.
    """
    return ceil(log1p(-confidence) / log1p(-fpr))


def is_certified(info: MonitorInfo, budget: Budget) -> bool:
    """Whether a budget is kept with the calibration's confidence: the card says so, and its numbers allow it."""
    return budget.certified and _num_benign(info, budget) >= needed_requests(budget.fpr, info.confidence)


def is_calibrated(info: MonitorInfo, scope: Scope) -> bool:
    """Whether some budget is certified for the scope. For a conversation, its own or both of its phases' will do."""
    certified = {budget.scope for budget in info.budgets if is_certified(info, budget)}
    return scope in certified or all(Scope(phase) in certified for phase in scope.phases)


def with_budgets(condition: Condition, monitors: Mapping[str, MonitorInfo]) -> tuple[Condition, list[Flaw]]:
    """The condition with the thresholds of its budgets, and why some have none."""
    flaws: list[Flaw] = []

    def threshold(exceeds: Exceeds) -> float | None:
        found = _threshold(exceeds, monitors[exceeds.series.monitor])
        if isinstance(found, Flaw):
            flaws.append(found)
            return None
        return found

    return bound(condition, threshold), flaws


def _threshold(exceeds: Exceeds, info: MonitorInfo) -> float | Flaw:
    scope = exceeds.series.scope
    known = [budget for budget in info.budgets if budget.scope is scope]
    if not known:
        others = "; ".join(
            f"{other}: {_rates(info, other)}"
            for other in Scope
            if any(b.scope is other for b in info.budgets)
        )
        told = f"monitor '{info.name}' is not calibrated for the {scope}, so a budget has no threshold"
        hint = f"calibrate it, or write a threshold: max({exceeds.series}) > 0.9"
        return Flaw(exceeds.at, "uncalibrated", told, f"{hint}. Its budgets: {others}" if others else hint)
    budget = next((b for b in known if isclose(b.fpr, exceeds.fpr, rel_tol=1e-9)), None)
    rate = number_text(exceeds.fpr)
    if budget is None:
        told = f"monitor '{info.name}' has no threshold for fpr={rate} in the {scope}"
        return Flaw(exceeds.fpr_at, "unknown-budget", told, f"known: {_rates(info, scope)}")
    if not is_certified(info, budget):
        needed = needed_requests(budget.fpr, info.confidence)
        confidence = f"{100 * info.confidence:g} % confidence"
        num_benign = _num_benign(info, budget)
        told = f"monitor '{info.name}' was calibrated on {num_benign:,} benign requests in the {scope}"
        if num_benign < needed:
            told += f", too few to certify fpr={rate} at {confidence}: that needs at least {needed:,}"
        else:
            told += f", and its calibration does not certify fpr={rate} at {confidence}"
        return Flaw(
            exceeds.fpr_at, "uncertified", told, f"calibrate it on more, or use one of: {_rates(info, scope)}"
        )
    return budget.threshold


def _num_benign(info: MonitorInfo, budget: Budget) -> int:
    return info.num_benign if budget.num_benign is None else budget.num_benign


def _rates(info: MonitorInfo, scope: Scope) -> str:
    """The budgets of a scope, strictest first."""
    rates = sorted((b for b in info.budgets if b.scope is scope), key=lambda b: b.fpr)
    return ", ".join(
        number_text(b.fpr) + ("" if is_certified(info, b) else " (not certified)") for b in rates
    )
