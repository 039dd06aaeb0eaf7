"""`interlock health`: whether the server on this machine is well, told by an exit code. For images that have no curl."""

from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from server.own_ports import open_client

if TYPE_CHECKING:
    import httpx  # heavy


def health(
    *,
    url: Annotated[
        str | None,
        typer.Option(
            help="The API port. Default: this machine's, by the same INTERLOCK__ variables as serve."
        ),
    ] = None,
) -> None:
    """Ask the running server's `/health`: 0 if it is well; 1, and why, if it is not, or is not there yet.

    For Docker's HEALTHCHECK. Kubernetes probes the admin port itself.
    """
    import httpx  # noqa: PLC0415

    try:
        client = open_client("api", url=url)
    except (ValueError, OSError) as error:
        _not_well(str(error), code=2)
    with client:
        try:
            well = client.get("/health").is_success
            why = "" if well else _why(client.get("/readyz"))
        except httpx.TransportError as error:
            _not_well(f"can't reach {client.base_url}: {error}")
    if not well:
        _not_well(why)
    typer.echo("well")


def _why(ready: "httpx.Response") -> str:
    try:
        failing = [check for check in ready.json()["checks"] if not check["ok"]]
        told = "; ".join(f"{check['name']}: {check.get('note', 'failing')}" for check in failing)
    except (ValueError, KeyError, TypeError):
        return f"{ready.request.url} answered {ready.status_code}, and not as Interlock does"
    return told or "it was not when asked, and is by now"


def _not_well(message: str, code: int = 1) -> NoReturn:
    typer.echo(f"not well: {message}", err=True)
    raise typer.Exit(code)
