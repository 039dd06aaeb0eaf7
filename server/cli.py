"""The `interlock` command. Heavy imports wait until a command needs them, so that `--help` is instant."""

import typer

from server.audit_cli import audit_app
from server.doctor_cli import doctor
from server.drain_cli import drain
from server.health_cli import health
from server.keys_cli import keys_app
from server.monitor_cli import monitor_app, sae_app, vector_app
from server.policy_cli import policy_app
from server.serve_cli import serve

app = typer.Typer(
    name="interlock",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""
**Runtime guardrails that read the model's own activations.**

`interlock serve` answers the OpenAI API on 127.0.0.1:8000. Monitors score every token's activations, and the
policy says what happens when a score trips: block, replace, steer, annotate or log, before the token leaves.

Try it:

- `interlock serve` (the demo model, its monitors and its policy)

- `curl 127.0.0.1:8000/v1/models`

- `interlock policy test deploy/policies/demo`
""",
)
app.add_typer(policy_app, name="policy")
app.add_typer(audit_app, name="audit")
app.add_typer(keys_app, name="keys")
app.add_typer(monitor_app, name="monitor")
app.add_typer(sae_app, name="sae")
app.add_typer(vector_app, name="vector")
app.command()(serve)
app.command()(doctor)
app.command()(drain)
app.command()(health)


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed  # noqa: PLC0415

    typer.echo(installed("interlock"))


def main() -> None:
    """Entry point of the console script."""
    app()
