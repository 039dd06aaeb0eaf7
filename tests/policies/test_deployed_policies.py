"""The tests that the policies of deploy/policies/ carry, one pytest case each."""

from pathlib import Path

import pytest

from guard.policy import load_policy
from guard.policy_test import Status, run_tests

ROOT = Path(__file__).parents[2] / "deploy" / "policies"


def cases():
    for folder in sorted(folder for folder in ROOT.glob("*") if any(folder.glob("*.yaml"))):
        for result in run_tests(load_policy(folder)).results:
            yield pytest.param(result, id=f"{folder.name}: {result.name}")


@pytest.mark.parametrize("result", list(cases()))
def test_policy(result):
    if result.status is Status.KNOWN_MISS:
        pytest.xfail(f"known miss: {result}")
    assert result.ok, str(result)
