"""`interlock drain`: has a server let its responses end, and waits for that."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from server.own_ports import open_client

if TYPE_CHECKING:
    import httpx  # heavy

_LOOK_S = 0.5


def drain(
    *,
    wait: Annotated[
        str | None,
        typer.Option(help="Leave after so long, for example 10s. Default: when nothing runs any more."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="The admin port. Default: this machine's, by the same INTERLOCK__ variables as serve."
        ),
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="File with a key of the scope admin, where the server has keys.")
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            help="CA (PEM) of the admin port's certificate. Default: the system's; here, the certificate itself."
        ),
    ] = None,
    cert: Annotated[
        Path | None, typer.Option(help="Certificate (PEM) to show, where the admin port asks for one.")
    ] = None,
    cert_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
) -> None:
    """Have a running server take no more requests, and wait until its responses have ended.

    The server turns not ready, refuses new requests after its drain delay, and ends what still runs after its drain
    timeout. The process stays, and answers on its admin port, until it gets SIGTERM: then it ends at once. For
    Kubernetes' preStop: `interlock drain --wait 10s`.
    """
    import httpx  # noqa: PLC0415

    from guard.durations import seconds  # noqa: PLC0415

    try:
        until = None if wait is None else time.monotonic() + seconds(wait)
        client = open_client("admin", url=url, key_file=key_file, ca=ca, cert=cert, cert_key=cert_key)
    except (ValueError, OSError) as error:
        _refuse(str(error), code=2)
    with client:
        try:
            state = _told(client.post("/-/drain"))
        except httpx.TransportError as error:
            _refuse(f"can't reach {client.base_url}: {error}. Is the server running? --url names another.")
        shown = ""
        while state["phase"] != "over":
            told = f"{state['phase']}: {state['running']} running, {state['waiting']} waiting"
            if told != shown:
                typer.echo(told)
                shown = told
            if until is not None and time.monotonic() >= until:
                typer.echo("The server goes on draining by itself.")
                return
            time.sleep(_LOOK_S)
            try:
                state = _told(client.get("/-/drain"))
            except httpx.ConnectError:
                typer.echo("The server has ended.")
                return
            except httpx.TransportError:  # it may be ending right now: look again
                continue
    typer.echo("Drained: nothing runs any more.")


def _told(reply: "httpx.Response") -> dict[str, Any]:
    if reply.status_code in {401, 403}:
        _refuse("the server wants a key with the scope admin: --key-file names a file that holds one")
    try:
        told: dict[str, Any] = reply.json()
        if not reply.is_success:
            _refuse(f"{reply.request.url} answered {reply.status_code}: {told['error']['message']}")
    except (ValueError, KeyError, TypeError):
        _refuse(f"{reply.request.url} answered {reply.status_code}, and not as an admin port does")
    return told


def _refuse(message: str, code: int = 1) -> NoReturn:
    typer.echo(f"interlock: not drained.\n{message}", err=True)
    raise typer.Exit(code)
