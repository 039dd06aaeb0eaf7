"""The `interlock` command. Heavy imports wait until a command needs them, so that `--help` is instant."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from server.audit_cli import audit_app
from server.config import DEMO, DEMO_POLICY, ServerConfig
from server.keys_cli import keys_app
from server.monitor_cli import monitor_app, sae_app, vector_app
from server.policy_cli import policy_app

if TYPE_CHECKING:
    from server.service import Service  # heavy

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


@app.command()
def serve(
    *,
    model: Annotated[
        str | None, typer.Option(help="Hub id or folder of a causal language model. Default: the demo model.")
    ] = None,
    served_model_name: Annotated[
        str | None, typer.Option(help="The name that clients use. Default: the last part of --model.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Policy file, or a folder of *.yaml. Needed with --model.")
    ] = None,
    monitors: Annotated[
        Path | None,
        typer.Option(help="Folder of monitor artifacts (sub-folders with monitor.json or vector.json)."),
    ] = None,
    last_good: Annotated[
        Path | None,
        typer.Option(
            help="A folder of its own, in which the last policy that was right is kept: with it, a server starts even if the policy is wrong by then. Default: it does not start."
        ),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(
            help="File of hashed keys (`interlock keys create`). With it, nothing but health answers without a key."
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address of the OpenAI API. Default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the OpenAI API. Default 8000.")] = None,
    admin_port: Annotated[
        int | None, typer.Option(help="Port of /metrics and health for operators. Default 9100.")
    ] = None,
    expose_metrics: Annotated[
        bool | None,
        typer.Option(
            "--expose-metrics",
            help="Also serve /metrics on the API port. It names rules: for trusted clients only.",
        ),
    ] = None,
    show_scores: Annotated[
        bool | None,
        typer.Option(
            "--show-scores",
            help="Let every client see monitors' scores (`moderation`, /v1/moderations). They help to optimise attacks: for trusted clients only.",
        ),
    ] = None,
    second_opinions: Annotated[
        Path | None,
        typer.Option(
            help="File of the judges, moderation endpoints and webhooks that rules may escalate to."
        ),
    ] = None,
    audit: Annotated[
        Path | None, typer.Option(help="Decision log (JSON lines). Default var/decisions.jsonl.")
    ] = None,
    no_audit: Annotated[bool, typer.Option("--no-audit", help="Keep no decision log.")] = False,
    log_content_max: Annotated[
        str | None,
        typer.Option(
            help="The most that a policy may have logged of prompts and replies: none, hash, excerpt or full. Default hash."
        ),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="What runs the model. Default (and so far the only one): transformers.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto, float32, bfloat16 or float16. auto is float32 on a CPU.")
    ] = None,
    layers_path: Annotated[
        str | None,
        typer.Option(help="Path of the decoder blocks, if they can't be found, e.g. model.layers."),
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(help="Responses generated at the same time. Default 16.")
    ] = None,
    max_context: Annotated[
        int | None,
        typer.Option(help="Tokens of prompt and response together. Default: the model's, at most 4096."),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log each request (never its text).")
    ] = False,
) -> None:
    """Serve a model under a policy.

    Every option can also be given as INTERLOCK__<NAME>, e.g. INTERLOCK__MAX_BATCH=8. The server does not start if
    the policy has an error, a monitor belongs to another model, or the model's layers can't be found for certain.
    """
    given = {
        name: value
        for name, value in {
            "model": model,
            "served_model_name": served_model_name,
            "policy": policy,
            "monitors": monitors,
            "last_good": last_good,
            "keys": keys,
            "host": host,
            "port": port,
            "admin_port": admin_port,
            "expose_metrics": expose_metrics,
            "show_scores": show_scores,
            "second_opinions": second_opinions,
            "audit": audit,
            "log_content_max": log_content_max,
            "engine": engine,
            "device": device,
            "dtype": dtype,
            "layers_path": layers_path,
            "max_batch": max_batch,
            "max_context": max_context,
        }.items()
        if value is not None
    }
    config = _config(given, no_audit=no_audit)
    from server.serve import bind, run, set_up_logging  # noqa: PLC0415

    set_up_logging(verbose=verbose)
    try:
        sockets = bind(config.host, config.port), bind(config.admin_host, config.admin_port)
    except OSError as error:
        _refuse(str(error))
    service = _assemble(config)
    typer.echo(_banner(service, config), err=True)
    run(service, config, *sockets)


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed  # noqa: PLC0415

    typer.echo(installed("interlock"))


def _config(given: dict[str, Any], *, no_audit: bool) -> ServerConfig:
    from pydantic import ValidationError  # noqa: PLC0415

    if no_audit:
        given["audit"] = None
    try:
        config = ServerConfig(**given)
    except ValidationError as error:
        _refuse(
            "\n".join(": ".join([*map(str, problem["loc"]), problem["msg"]]) for problem in error.errors())
        )
    if config.model == str(DEMO / "model"):
        return (
            config
            if config.served_model_name
            else config.model_copy(update={"served_model_name": "interlock-demo"})
        )
    # the demo's policy and monitors belong to the demo's model
    if config.policy == DEMO_POLICY and "policy" not in config.model_fields_set:
        _refuse(
            "--model needs --policy: which rules hold is never guessed. See deploy/policies/ for examples."
        )
    if "monitors" not in config.model_fields_set:
        config = config.model_copy(update={"monitors": None})
    return config


def _assemble(config: ServerConfig) -> "Service":
    """Build the service, or say what is wrong and leave with 2."""
    from guard.errors import GuardError  # noqa: PLC0415
    from monitors.artifacts import ArtifactError  # noqa: PLC0415
    from monitors.hook_points import HookPointError  # noqa: PLC0415
    from server.assemble import assemble  # noqa: PLC0415
    from server.auditing.errors import AuditError  # noqa: PLC0415
    from server.engines.base import EngineError  # noqa: PLC0415

    try:
        return assemble(config)
    except (GuardError, ArtifactError, HookPointError, EngineError, AuditError, OSError, ValueError) as error:
        _refuse(str(error))


def _banner(service: "Service", config: ServerConfig) -> str:
    info = service.engine.info
    open_to_all = (
        ""
        if config.keys or config.host in {"127.0.0.1", "localhost", "::1"}
        else (
            f"\nwarning   no --keys: whoever reaches {config.host}:{config.port} may use it. Make some: interlock keys create --help"
        )
    )
    return (
        f"model     {info.model_id} ({info.dtype} on {info.device}, context {info.max_context}, batch {info.max_batch})\n"
        f"{_memory(service)}"
        f"monitors  {', '.join(service.policies.in_force.scoring.names) or 'none'}\n"
        f"policy    {service.policies.current}\n"
        f"{_asked(service)}"
        f"{_known(service)}"
        f"log       {config.audit or 'none'}\n"
        f"API       http://{config.host}:{config.port}/v1    metrics http://{config.admin_host}:{config.admin_port}/metrics"
        f"{open_to_all}"
    )


def _asked(service: "Service") -> str:
    names = ", ".join(service.second_opinions.names)
    return f"opinions  {names}\n" if names else ""


def _memory(service: "Service") -> str:
    return f"KV cache  {service.kv_plan}\n" if service.kv_plan else ""


def _known(service: "Service") -> str:
    if service.keys is None:
        return ""
    return f"keys      {service.keys.num_keys} of {len(service.keys.tenants)} tenants\n"


def _refuse(message: str) -> NoReturn:
    typer.echo(f"interlock: not started.\n{message}", err=True)
    raise typer.Exit(2)


def main() -> None:
    """Entry point of the console script."""
    app()
