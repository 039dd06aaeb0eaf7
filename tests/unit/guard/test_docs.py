"""The policies in docs/policy.md load, and their tests pass."""

import re
from pathlib import Path

import pytest

from guard.policy import policy_from_text
from guard.policy_test import run_tests

PAGE = (Path(__file__).parents[3] / "docs" / "policy.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_the_examples_of_the_language_reference_run(text):
    report = run_tests(policy_from_text(text))
    assert report.results
    assert report.ok, "\n".join(map(str, report.results))
