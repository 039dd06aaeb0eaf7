"""What the policy checks are told of monitors and vectors."""

import torch

from guard.types import Budget, MonitorInfo, Scope, VectorInfo
from monitors.base import Calibration, Link, Monitor, Threshold
from monitors.linear import Linear
from monitors.steering import Direction, SteeringVector
from monitors.types import CausalVerdict, HookPoint
from server.policy_store import describe_monitors, describe_vectors

POINT = HookPoint(1)
PROBE = Linear((POINT,), torch.ones(1, 4), torch.zeros(1))


def test_monitors_with_their_range_and_calibration():
    thresholds = (
        Threshold("prompt", 0.01, 0.7, certified=True),
        Threshold("conversation", 0.001, 0.9, certified=False),
    )
    monitors = [
        Monitor("plain", PROBE),
        Monitor(
            "harm", PROBE, version="3", link=Link.SIGMOID, calibration=Calibration(3_000, 0.9, thresholds)
        ),
    ]
    budgets = (
        Budget(Scope.PROMPT, 0.01, 0.7, certified=True),
        Budget(Scope.CONVERSATION, 0.001, 0.9, certified=False),
    )
    assert describe_monitors(monitors) == {
        "plain": MonitorInfo("plain"),
        "harm": MonitorInfo("harm", 0.0, 1.0, budgets, 3_000, 0.9, version="3"),
    }


def test_vectors_with_what_their_causal_test_allows():
    direction = (Direction(POINT, torch.ones(4)),)
    vectors = [
        SteeringVector("a", "add", direction),
        SteeringVector("b", "add", direction, verdict=CausalVerdict.WRITE_HANDLE),
        SteeringVector("c", "ablate", direction, verdict=CausalVerdict.WRITE_HANDLE),
    ]
    assert describe_vectors(vectors) == {
        "a": VectorInfo("a", steerable=None, verdict=""),
        "b": VectorInfo("b", steerable=True, verdict="write-handle"),
        "c": VectorInfo("c", steerable=False, verdict="write-handle"),
    }
