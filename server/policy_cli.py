"""`interlock policy …`: what policies say, whether it is right, and what a change would do. No model is needed."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from guard.schema import json_schema
from server.tools.check import check as check_policies
from server.tools.diff import diff_policies
from server.tools.explain import explain_policy, read_scores
from server.tools.fmt import format_files
from server.tools.loading import Where
from server.tools.replay import replay_logs
from server.tools.report import Format, Report, print_report
from server.tools.run_tests import test_policies

policy_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""
Check, test, compare and explain policies, and try them on recorded traffic. No model is needed.

Leaves with 0 (fine), 1 (errors), 2 (wrong usage) or 3 (warnings, with `check --strict`).
`--format json` prints one document; `--format github` prints workflow commands that annotate files of a pull request, `--format sarif` SARIF 2.1.0.

- `interlock policy check deploy/policies/*/`

- `interlock policy test --coverage policy.yaml`

- `interlock policy replay --audit var/decisions.jsonl candidate.yaml`
""",
)

_Paths = Annotated[list[Path], typer.Argument(help="Policy files, or folders of *.yaml.", show_default=False)]
_Monitors = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the artifacts that the server will have. Then names, versions, ranges, budgets and evidence are checked, too."
    ),
]
_MaxResponse = Annotated[
    int | None, typer.Option(min=1, help="Tokens of the longest response that the server gives.")
]
_Format = Annotated[
    Format,
    typer.Option(
        "--format", help="For a reader, a program, a workflow on GitHub, or a tool that reads SARIF."
    ),
]


@policy_app.command()
def check(
    paths: _Paths,
    *,
    strict: Annotated[bool, typer.Option("--strict", help="Leave with 3 if there are warnings.")] = False,
    monitors: _Monitors = None,
    max_response_tokens: _MaxResponse = None,
    form: _Format = Format.TEXT,
) -> None:
    """Read policies and report every problem as file:line:col, with what to do about it.

    `interlock policy check --strict --format github deploy/policies/*/`

    `interlock policy check --monitors deploy/demo/monitors deploy/policies/demo` checks as the server will.
    """
    _finish(check_policies(paths, Where(monitors, max_response_tokens), strict=strict), form)


@policy_app.command("test")
def run_policy_tests(
    paths: _Paths,
    *,
    coverage: Annotated[
        bool, typer.Option("--coverage", help="Tell which rules, actions and phases no test reaches.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the tests that pass, too.")] = False,
    monitors: _Monitors = None,
    form: _Format = Format.TEXT,
) -> None:
    """Run the tests that policies carry. Leaves with 1 if one fails.

    `interlock policy test --coverage policy.yaml`
    """
    _finish(test_policies(paths, Where(monitors), verbose=verbose, with_coverage=coverage), form)


@policy_app.command()
def schema(*, form: _Format = Format.TEXT) -> None:
    """Print the JSON Schema of policy files, for editors. It is JSON in every format.

    `interlock policy schema > policy.schema.json`, then `# yaml-language-server: $schema=policy.schema.json` on the
    first line of a policy.
    """
    typer.echo(json.dumps(json_schema(), indent=2))


@policy_app.command()
def fmt(
    paths: _Paths,
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; leave with 1 if a file would change.")
    ] = False,
    form: _Format = Format.TEXT,
) -> None:
    """Put policy files into the canonical layout: the schema's order of keys, two blanks to indent.

    Comments stay with what they are about. A file that could not keep its exact meaning is refused and left as it is.

    `interlock policy fmt --check deploy/policies/*/`
    """
    _finish(format_files(paths, check_only=check), form)


@policy_app.command()
def diff(
    before: Annotated[Path, typer.Argument(help="Policy file or folder.", metavar="A", show_default=False)],
    after: Annotated[Path, typer.Argument(help="Policy file or folder.", metavar="B", show_default=False)],
    *,
    form: _Format = Format.TEXT,
) -> None:
    """Tell what differs in meaning: `rule x: threshold 0.90 -> 0.85`. Layout and comments do not count.

    Leaves, as diff(1) does, with 0 if the policies mean the same, 1 if they differ, 2 if one can't be read.

    `interlock policy diff deployed.yaml candidate.yaml`
    """
    _finish(diff_policies(before, after), form)


@policy_app.command()
def explain(
    file: Annotated[Path, typer.Argument(help="Policy file or folder.", show_default=False)],
    rule: Annotated[str | None, typer.Argument(help="Only this rule.", show_default=False)] = None,
    *,
    scores: Annotated[
        list[str] | None,
        typer.Option(help="A series to follow token by token, e.g. prompt.harm=0.1x4,0.9. May be repeated."),
    ] = None,
    now: Annotated[
        str | None, typer.Option(help="When, for exceptions: 2026-12-01T00:00:00Z. Default: the present.")
    ] = None,
    form: _Format = Format.TEXT,
) -> None:
    """Tell in plain words what rules do; with --scores, what they make of a series.

    `interlock policy explain policy.yaml deception --scores response.deception=0.1x3,0.8x4`
    """
    try:
        series = read_scores(scores or ())
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--scores") from None
    _finish(explain_policy(file, rule, series, _time(now)), form)


@policy_app.command()
def replay(
    candidate: Annotated[
        Path, typer.Argument(metavar="NEW", help="Policy file or folder.", show_default=False)
    ],
    *,
    audit: Annotated[
        list[Path], typer.Option(help="Decision log (JSON lines). May be repeated.", show_default=False)
    ],
    examples: Annotated[int, typer.Option(min=0, max=1000, help="Decision ids to show of each sort.")] = 5,
    expect_same: Annotated[
        bool,
        typer.Option("--expect-same", help="Leave with 1 if any decision differs from the recorded one."),
    ] = False,
    form: _Format = Format.TEXT,
) -> None:
    """Decide recorded traffic again under another policy: who would newly be blocked, steered or allowed, by which rule.

    Each record is decided at its own time, so exceptions hold as they held then.

    `interlock policy replay --audit var/decisions.jsonl candidate.yaml`
    """
    _finish(replay_logs(candidate, audit, examples=examples, expect_same=expect_same), form)


def _time(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise typer.BadParameter("write a time with its zone, e.g. 2026-12-01T00:00:00Z", param_hint="--now")
    return time


def _finish(report: Report, form: Format) -> None:
    print_report(report, form)
    if report.code:
        raise typer.Exit(report.code)
