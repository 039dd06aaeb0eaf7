"""`interlock keys …`: make, list, check and revoke keys. A key's secret is shown once, and only its hash is stored."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Never

import typer

from guard.errors import PolicyError
from server.keys.edit import EditError, add, as_yaml, entry, remove
from server.keys.file import parse_keys, read_key_bytes
from server.keys.secret import make_key
from server.keys.types import Key, KeyScope

keys_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""
Keys of the API. The file holds hashes only; a running server takes changes up within seconds.

- `interlock keys create --tenant acme --file keys.yaml`

- `interlock serve --keys keys.yaml`

- `interlock keys revoke 3f9a12c07b --file keys.yaml`
""",
)

_File = Annotated[Path, typer.Option("--file", help="The key file.")]


@keys_app.command()
def create(
    *,
    tenant: Annotated[str, typer.Option(help="Whose key it is: policies name it in match.tenants.")],
    file: Annotated[
        Path | None,
        typer.Option(help="The key file, made if it is not there. Without: print the entry, change nothing."),
    ] = None,
    scope: Annotated[
        list[KeyScope] | None,
        typer.Option(
            help="infer: the API. debug: see scores, /metrics. admin: the admin port. May be repeated. Default infer."
        ),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="When it ends: 90d, 12h, or a time such as 2027-01-31T00:00:00Z.")
    ] = None,
    description: Annotated[str, typer.Option(help="For whom, for what.")] = "",
    new_tenant: Annotated[
        bool, typer.Option("--new-tenant", help="The file does not have this tenant yet: add it.")
    ] = False,
) -> None:
    """Make a key. Standard output is the key itself and nothing else; it can't be shown again.

    `interlock keys create --tenant acme --file keys.yaml > acme.key`
    """
    key = make_key()
    until = _until(expires) if expires else None
    made = entry(key, tenant, scope or [KeyScope.INFER], expires=until, description=description)
    try:
        if file is None:
            typer.echo(f"To be added to keys in the key file:\n{as_yaml([made])}", err=True)
        else:
            add(file, made, new_tenant=new_tenant)
            typer.echo(
                f"Key {key.id} of {tenant} added to {file}. Its secret is not stored anywhere:", err=True
            )
    except (PolicyError, EditError, OSError) as error:
        _refuse(str(error))
    typer.echo(key.text)


@keys_app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, as in ilk_<id>_…")], file: _File
) -> None:
    """Take a key out of the file. Requests that already run go on."""
    try:
        remove(file, key_id)
    except (PolicyError, EditError, OSError) as error:
        _refuse(str(error))
    typer.echo(f"Key {key_id} removed from {file}.")


@keys_app.command("list")
def list_keys(file: _File) -> None:
    """Show the keys of a file."""
    now = datetime.now(UTC)
    for key in _keys(file):
        typer.echo(f"{key.id}  {key.tenant}  {','.join(sorted(key.scopes))}  {_ends(key, now)}")


@keys_app.command()
def check(file: _File) -> None:
    """Check a key file as the server does: leaves with 1, and every problem as file:line:col, if it is wrong."""
    typer.echo(f"{file}: {len(_keys(file))} keys")


def _keys(file: Path) -> list[Key]:
    try:
        return list(parse_keys(read_key_bytes(file), file).keys.values())
    except PolicyError as error:
        _refuse(str(error))


def _ends(key: Key, now: datetime) -> str:
    if key.expires is None:
        return "does not expire"
    return f"{'expired' if key.expires <= now else 'expires'} {key.expires.isoformat()}"


def _until(text: str) -> datetime:
    if found := re.fullmatch(r"([1-9]\d{0,4})([dh])", text):
        number = int(found[1])
        return datetime.now(UTC) + (timedelta(days=number) if found[2] == "d" else timedelta(hours=number))
    try:
        until = datetime.fromisoformat(text)
    except ValueError:
        until = None
    if until is None or until.tzinfo is None:
        _refuse("--expires: write 90d, 12h, or a time with its zone, for example 2027-01-31T00:00:00Z")
    return until


def _refuse(message: str) -> Never:
    typer.echo(message, err=True)
    raise typer.Exit(1)
