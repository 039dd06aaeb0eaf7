"""`interlock policy test`: run the tests that policies carry, and tell what they leave out."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from guard.coverage import Coverage, coverage
from guard.errors import Problem
from guard.policy import Policy
from guard.policy_test import Report as TestReport
from guard.policy_test import Status, run_tests
from server.tools.loading import Where, load_all, test_problem
from server.tools.report import ExitCode, Report


def test_policies(paths: Sequence[Path], where: Where, *, verbose: bool, with_coverage: bool) -> Report:
    loaded = load_all(paths, where)
    problems = [problem for problem in loaded.problems if problem.severity == "error"]
    lines: list[str] = []
    told: list[dict[str, Any]] = []
    failures: list[Problem] = []
    for path, policy in loaded.policies:
        report = run_tests(policy)
        failures += _failures(policy, report)
        reached = coverage(policy) if with_coverage else None
        lines += _lines(policy, report, reached, verbose=verbose)
        told.append(_data(path, policy, report, reached))
    code = ExitCode.ERRORS if problems or failures else ExitCode.OK
    return Report(
        "test", "\n".join(lines), {"policies": told}, tuple(problems), told=tuple(failures), code=code
    )


def _failures(policy: Policy, report: TestReport) -> Iterator[Problem]:
    for index, result in enumerate(report.results):
        if not result.ok:
            yield test_problem(policy, index, f"test '{result.name}' fails: {'; '.join(result.differences)}")


def _lines(policy: Policy, report: TestReport, reached: Coverage | None, *, verbose: bool) -> Iterator[str]:
    for result in report.results:
        if verbose or result.status is not Status.PASSED:
            yield str(result)
    if reached is None:
        yield from (f"note: no test makes rule '{rule}' match" for rule in report.uncovered)
    else:
        yield from _coverage_lines(reached)
    passed = sum(result.ok for result in report.results)
    yield f"{policy}: {passed} passed, {len(report.results) - passed} failed"


def _coverage_lines(reached: Coverage) -> Iterator[str]:
    matched = reached.num_rules - len(reached.unmatched)
    yield f"coverage: {matched} of {reached.num_rules} rules are made to match ({reached.percent:.0f} %)"
    yield from (f"  no test makes rule '{rule}' match" for rule in reached.unmatched)
    yield from (
        f"  rule '{rule}' matches in every test that gives it scores: show that it lets something pass"
        for rule in reached.unmissed
    )
    yield from (f"  no test ends in the action '{action}'" for action in reached.actions)
    yield from (
        f"  no test has the second opinion that rule '{rule}' asks for answer '{answer}'"
        for rule, answer in reached.answers
    )
    yield from (f"  no test makes a rule match in the {phase}" for phase in reached.phases)
    if reached.failures:
        yield "  no test feeds a broken score (nan), so on_error is untested"


def _data(path: Path, policy: Policy, report: TestReport, reached: Coverage | None) -> dict[str, Any]:
    passed = sum(result.ok for result in report.results)
    data: dict[str, Any] = {
        "path": str(path),
        "name": policy.name,
        "version": policy.version,
        "digest": policy.digest,
        "passed": passed,
        "failed": len(report.results) - passed,
        "results": [asdict(result) for result in report.results],
    }
    return data if reached is None else {**data, "coverage": {**asdict(reached), "percent": reached.percent}}
