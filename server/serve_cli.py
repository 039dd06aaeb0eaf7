"""`interlock serve`: from options to a running server. Heavy imports wait until the options are known to be right."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from server.config import ServerConfig, for_serving

if TYPE_CHECKING:
    from server.ports import Port
    from server.service import Service  # heavy

_model = partial(typer.Option, rich_help_panel="Model")
_rules = partial(typer.Option, rich_help_panel="Policy and clients")
_ports = partial(typer.Option, rich_help_panel="Ports, TLS, end")
_log = partial(typer.Option, rich_help_panel="Decision log")
_NO_SETTINGS = frozenset({"no_audit", "verbose"})


def serve(
    *,
    model: Annotated[
        str | None, _model(help="Hub id or folder of a causal language model. Default: the demo model.")
    ] = None,
    served_model_name: Annotated[
        str | None, _model(help="The name that clients use. Default: the last part of --model.")
    ] = None,
    monitors: Annotated[
        Path | None,
        _model(help="Folder of monitor artifacts (sub-folders with monitor.json or vector.json)."),
    ] = None,
    engine: Annotated[
        str | None, _model(help="What runs the model. Default (and so far the only one): transformers.")
    ] = None,
    device: Annotated[str | None, _model(help="auto, cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[
        str | None, _model(help="auto, float32, bfloat16 or float16. auto is float32 on a CPU.")
    ] = None,
    layers_path: Annotated[
        str | None,
        _model(help="Path of the decoder blocks, if they can't be found, e.g. model.layers."),
    ] = None,
    max_batch: Annotated[int | None, _model(help="Responses generated at the same time. Default 16.")] = None,
    max_context: Annotated[
        int | None,
        _model(help="Tokens of prompt and response together. Default: the model's, at most 4096."),
    ] = None,
    policy: Annotated[
        Path | None, _rules(help="Policy file, or a folder of *.yaml. Needed with --model.")
    ] = None,
    last_good: Annotated[
        Path | None,
        _rules(
            help="A folder of its own, in which the last policy that was right is kept: with it, a server starts even if the policy is wrong by then. Default: it does not start."
        ),
    ] = None,
    keys: Annotated[
        Path | None,
        _rules(
            help="File of hashed keys (`interlock keys create`). With it, nothing but health answers without a key."
        ),
    ] = None,
    show_scores: Annotated[
        bool | None,
        _rules(
            "--show-scores",
            help="Let every client see monitors' scores (`moderation`, /v1/moderations). They help to optimise attacks: for trusted clients only.",
        ),
    ] = None,
    second_opinions: Annotated[
        Path | None,
        _rules(help="File of the judges, moderation endpoints and webhooks that rules may escalate to."),
    ] = None,
    host: Annotated[
        str | None, _ports(help="Address that the OpenAI API listens on. Default 127.0.0.1.")
    ] = None,
    port: Annotated[int | None, _ports(help="Port of the OpenAI API. Default 8000.")] = None,
    admin_host: Annotated[
        str | None, _ports(help="Address that the admin port listens on. Default 127.0.0.1.")
    ] = None,
    admin_port: Annotated[
        int | None,
        _ports(help="Port for operators: metrics, probes, reload, drain, debugging. Default 9100."),
    ] = None,
    expose_metrics: Annotated[
        bool | None,
        _ports(
            "--expose-metrics",
            help="Also serve /metrics on the API port. It names rules: for trusted clients only.",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        _ports(
            help="Certificate (PEM, with its chain): both ports speak HTTPS, and take a renewed one without a restart. Default: plain HTTP."
        ),
    ] = None,
    tls_key: Annotated[Path | None, _ports(help="Its private key (PEM, not encrypted).")] = None,
    admin_tls_cert: Annotated[
        Path | None, _ports(help="Another certificate for the admin port. Default: the same.")
    ] = None,
    admin_tls_key: Annotated[Path | None, _ports(help="The private key of that.")] = None,
    admin_tls_ca: Annotated[
        Path | None, _ports(help="CA (PEM): only who has a certificate of it may connect to the admin port.")
    ] = None,
    drain_delay_s: Annotated[
        float | None,
        _ports(
            help="After SIGTERM: seconds in which the server is not ready any more but serves, until load balancers have noticed. Default 5."
        ),
    ] = None,
    drain_timeout_s: Annotated[
        float | None, _ports(help="After that: seconds that running responses get to end. Default 30.")
    ] = None,
    audit: Annotated[
        Path | None, _log(help="Decision log (JSON lines). Default var/decisions.jsonl.")
    ] = None,
    no_audit: Annotated[bool, _log("--no-audit", help="Keep no decision log.")] = False,
    log_content_max: Annotated[
        str | None,
        _log(
            help="The most that a policy may have logged of prompts and replies: none, hash, excerpt or full. Default hash."
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log each request (never its text).")
    ] = False,
) -> None:
    """Serve a model under a policy.

    Every option can also be given by its name as `INTERLOCK__NAME`, e.g. `INTERLOCK__MAX_BATCH=8`. The server does not start if
    the policy has an error, a monitor belongs to another model, or the model's layers can't be found for certain.
    """
    settings = locals()  # every option is a setting of the same name, but for two
    given = {
        name: value for name, value in settings.items() if value is not None and name not in _NO_SETTINGS
    }
    config = _config(given, no_audit=no_audit)
    from server.ports import open_ports  # noqa: PLC0415
    from server.serve import run, set_up_logging  # noqa: PLC0415
    from server.tls import TlsError  # noqa: PLC0415

    set_up_logging(verbose=verbose)
    try:
        api, admin = open_ports(config)
    except (OSError, TlsError) as error:
        _refuse(str(error))

    def load() -> "Service":
        service = _assemble(config)
        typer.echo(_banner(service, config, api, admin), err=True)
        return service

    run(load, config, api, admin)


def _config(given: dict[str, Any], *, no_audit: bool) -> ServerConfig:
    if no_audit:
        given["audit"] = None
    try:
        return for_serving(**given)
    except ValueError as error:
        _refuse(str(error))


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


def _banner(service: "Service", config: ServerConfig, api: "Port", admin: "Port") -> str:
    from server.ports import exposed  # noqa: PLC0415

    info = service.engine.info
    has_keys = service.keys is not None
    warnings = filter(None, (exposed(port, has_keys=has_keys) for port in (api, admin)))
    return (
        f"model     {info.model_id} ({info.dtype} on {info.device}, context {info.max_context}, batch {info.max_batch})\n"
        f"{_memory(service)}"
        f"monitors  {', '.join(service.policies.in_force.scoring.names) or 'none'}\n"
        f"policy    {service.policies.current}\n"
        f"{_asked(service)}"
        f"{_known(service)}"
        f"log       {config.audit or 'none'}\n"
        f"API       {api.url}/v1    metrics {admin.url}/metrics"
        + "".join(f"\nwarning   {told}" for told in warnings)
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
