"""`interlock policy …`: check policies and run their tests, without a model."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from guard.errors import PolicyError
from guard.policy import Policy, load_policy
from guard.policy_test import Status, run_tests
from guard.schema import json_schema

policy_app = typer.Typer(
    no_args_is_help=True, help="Check policies and run the tests in them. No model is needed."
)

_Paths = Annotated[list[Path], typer.Argument(help="Policy files, or folders of *.yaml.", show_default=False)]


@policy_app.command()
def check(
    paths: _Paths,
    *,
    strict: Annotated[bool, typer.Option("--strict", help="Leave with 3 if there are warnings.")] = False,
) -> None:
    """Read policies and report every problem as file:line:col. Leaves with 0 (fine), 1 (errors) or 3 (warnings, with --strict)."""
    policies = _load_all(paths)
    for policy in policies:
        for warning in policy.warnings:
            typer.echo(warning, err=True)
        typer.echo(f"ok: {policy} ({len(policy.rules)} rules, {len(policy.tests)} tests)")
    if strict and any(policy.warnings for policy in policies):
        raise typer.Exit(3)


@policy_app.command("test")
def run_policy_tests(
    paths: _Paths,
    *,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the tests that pass, too.")] = False,
) -> None:
    """Run the tests that policies carry. Leaves with 1 if one fails."""
    failed = False
    for policy in _load_all(paths):
        report = run_tests(policy)
        for result in report.results:
            if verbose or result.status is not Status.PASSED:
                typer.echo(str(result))
        for rule in report.uncovered:
            typer.echo(f"note: no test makes rule '{rule}' match")
        passed = sum(result.ok for result in report.results)
        typer.echo(f"{policy}: {passed} passed, {len(report.results) - passed} failed")
        failed = failed or not report.ok
    if failed:
        raise typer.Exit(1)


@policy_app.command()
def schema() -> None:
    """Print the JSON Schema of policy files, for editors: `# yaml-language-server: $schema=policy.schema.json`."""
    typer.echo(json.dumps(json_schema(), indent=2))


def _load_all(paths: list[Path]) -> list[Policy]:
    """Read every policy, and only then give up if one was wrong."""
    policies: list[Policy] = []
    wrong = False
    for path in paths:
        try:
            policies.append(load_policy(path))
        except PolicyError as error:
            wrong = True
            typer.echo(str(error), err=True)
        except OSError as error:
            wrong = True
            typer.echo(f"{path}: {error.strerror}; give a policy file or a folder of *.yaml", err=True)
    if wrong:
        sys.exit(1)
    return policies
