"""`interlock doctor`: checks a machine and a configuration, and says what to fix."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from server.config import for_serving
from server.own_ports import open_client

if TYPE_CHECKING:
    from server.findings import Finding  # heavy beside it


def doctor(
    *,
    model: Annotated[str | None, typer.Option(help="As for serve.")] = None,
    monitors: Annotated[Path | None, typer.Option(help="As for serve.")] = None,
    policy: Annotated[Path | None, typer.Option(help="As for serve.")] = None,
    keys: Annotated[Path | None, typer.Option(help="As for serve.")] = None,
    audit: Annotated[Path | None, typer.Option(help="As for serve.")] = None,
    device: Annotated[str | None, typer.Option(help="As for serve.")] = None,
    url: Annotated[
        str | None, typer.Option(help="The admin port of a running server. Default: this machine's.")
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(help="File with a key of the scopes debug and admin, where the server has keys."),
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="CA (PEM) of the admin port's certificate.")] = None,
    cert: Annotated[
        Path | None, typer.Option(help="Certificate (PEM) to show, where the admin port asks for one.")
    ] = None,
    cert_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    form: Annotated[
        Literal["text", "json"], typer.Option("--format", help="For a reader, or a program.")
    ] = "text",
) -> None:
    """Check this machine and the configuration that `interlock serve` would read, and say what to fix.

    Changes nothing, and asks nobody but the admin port. Leaves with 0 (fine), 1 (warnings only) or 2 (problems: the
    server would not start, does not serve, or its settings can't be read).
    """
    given: dict[str, Any] = {
        "model": model,
        "monitors": monitors,
        "policy": policy,
        "keys": keys,
        "audit": audit,
        "device": device,
    }
    try:
        config = for_serving(**{name: value for name, value in given.items() if value is not None})
        client = open_client("admin", url=url, key_file=key_file, ca=ca, cert=cert, cert_key=cert_key)
    except (ValueError, OSError) as error:
        _cannot(str(error), form)
    from server.doctor import examine  # noqa: PLC0415

    with client:
        findings = list(examine(config, client))
    _finish(findings, form)


def _cannot(message: str, form: str) -> NoReturn:
    from server.findings import Finding  # noqa: PLC0415

    _finish([Finding.problem("settings", message, "mend the setting; see interlock serve --help")], form)
    raise AssertionError("a problem leaves")


def _finish(findings: "Sequence[Finding]", form: str) -> None:
    counts = {
        level: sum(finding.level == level for finding in findings) for level in ("problem", "warning", "ok")
    }
    code = 2 if counts["problem"] else 1 if counts["warning"] else 0
    if form == "json":
        whole = {"exit_code": code, "counts": counts, "findings": [asdict(finding) for finding in findings]}
        typer.echo(json.dumps(whole, indent=2))
    else:
        for finding in findings:
            typer.echo(f"{finding.level:<8} {finding.check:<9} {finding.found}")
            if finding.todo:
                typer.echo(f"{'':18} -> {finding.todo}")
        typer.echo(f"{counts['problem']} problems, {counts['warning']} warnings, {counts['ok']} ok")
    if code:
        raise typer.Exit(code)
