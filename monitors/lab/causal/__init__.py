"""The causal card: does the model use what a monitor reads? Definitions: docs/causal-card.md."""

from monitors.lab.causal.behaviour import Behaviour, parse_behaviour
from monitors.lab.causal.job import Subjects, Verification
from monitors.lab.causal.plan import FULL, QUICK, Plan
from monitors.lab.causal.verify import verify

__all__ = [
    "FULL",
    "QUICK",
    "Behaviour",
    "Plan",
    "Subjects",
    "Verification",
    "parse_behaviour",
    "verify",
]
