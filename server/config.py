"""What a server is started with: command line over environment (`INTERLOCK__…`) over defaults. Unknown keys are refused."""

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from guard.audit import SeriesFormat
from guard.schema import LogContent
from server.auditing.writer import OnFull
from server.keys.types import BlockStyle
from server.limits.shared import OnError
from server.sizes import parse_size
from server.tls import TlsFiles

_PREFIX = "INTERLOCK__"
DEMO = Path(__file__).resolve().parent.parent / "deploy" / "demo"
DEMO_POLICY = DEMO.parent / "policies" / "demo"


def _size(text: str) -> str:
    if text != "auto":
        parse_size(text)
    return text


class ServerConfig(BaseSettings):
    """Settings of `interlock serve`. Every field can be given as INTERLOCK__<NAME>."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_variables(cls, given: dict[str, Any]) -> dict[str, Any]:
        """A misspelt variable must not silently leave its default in force."""
        known = {f"{_PREFIX}{name}".upper() for name in cls.model_fields}
        for name in os.environ:
            if name.upper().startswith(_PREFIX) and name.upper() not in known:
                close = get_close_matches(name.upper(), known, 1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ValueError(f"unknown environment variable {name}{hint}")
        return given

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        for cert, key in (("tls_cert", "tls_key"), ("admin_tls_cert", "admin_tls_key")):
            if (getattr(self, cert) is None) != (getattr(self, key) is None):
                raise ValueError(f"{cert} and {key} go together: give both")
        if self.admin_tls_ca is not None and self.admin_tls is None:
            raise ValueError(
                "admin_tls_ca needs a certificate of the port itself: give tls_cert and tls_key, too"
            )
        return self

    @property
    def tls(self) -> TlsFiles | None:
        """Of the serving port. None: it speaks plain HTTP."""
        return TlsFiles(self.tls_cert, self.tls_key) if self.tls_cert and self.tls_key else None

    @property
    def admin_tls(self) -> TlsFiles | None:
        """Of the admin port. None: it speaks plain HTTP."""
        cert, key = self.admin_tls_cert or self.tls_cert, self.admin_tls_key or self.tls_key
        return TlsFiles(cert, key, self.admin_tls_ca) if cert and key else None

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="forbid", frozen=True)

    model: str = str(DEMO / "model")  # hub id or folder
    served_model_name: str | None = None  # what clients call it; None: the last part of `model`
    policy: Path = DEMO_POLICY  # a file, or a folder of *.yaml
    monitors: Path | None = DEMO / "monitors"  # a folder of artifacts
    keys: Path | None = None  # a file of hashed keys; None: whoever reaches a port may use it
    limits_redis: SecretStr | None = None  # redis://…: limits of keys are shared by all servers that name it
    limits_on_error: OnError = (
        "closed"  # while Redis can't be reached: closed refuses requests, open counts by each server alone
    )
    limits_timeout_s: Annotated[float, Field(gt=0)] = 0.25  # of a call to Redis
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    admin_host: str = "127.0.0.1"
    admin_port: Annotated[int, Field(ge=0, le=65535)] = 9100
    tls_cert: Path | None = (
        None  # PEM; with it both ports speak HTTPS, and read their files again when they change
    )
    tls_key: Path | None = None  # PEM, not encrypted
    admin_tls_cert: Path | None = None  # None: the admin port shows that of the other
    admin_tls_key: Path | None = None
    admin_tls_ca: Path | None = None  # who connects to the admin port must have a certificate of this CA
    expose_metrics: bool = False  # /metrics on the serving port too
    show_scores: bool = (
        False  # every client may see scores, which help to optimise attacks: trusted ones only
    )
    metrics_compat: Literal["none", "vllm"] = "none"  # vllm: some metrics by vLLM's names, too
    telemetry: Literal["off", "otlp"] = (
        "off"  # otlp: traces and evaluation events; where to is in OTEL_… variables
    )
    block_style: BlockStyle = BlockStyle.OPENAI  # how clients are told of a block
    second_opinions: Path | None = None  # a file of targets that rules may escalate to
    audit: Path | None = Path("var/decisions.jsonl")  # None: no decision log
    audit_on_full: OnFull = (
        "closed"  # while the log can't be written: closed admits no request, open drops records
    )
    audit_max_queued: Annotated[int, Field(ge=1)] = 10_000  # records
    audit_series: SeriesFormat = (
        "exact"  # scores: exact (replays bit for bit) | q8 (rounded) | none (maxima only)
    )
    audit_max_bytes: Annotated[int, Field(ge=4096)] = 100 * 1024 * 1024  # of a file, then it is rotated
    audit_max_age_s: Annotated[float, Field(gt=0)] = 86_400.0
    audit_keep: Annotated[int, Field(ge=0)] = 90  # rotated files; 0: all
    audit_fsync_s: Annotated[float, Field(ge=0)] = (
        1.0  # from a record to its fdatasync at most; 0: after each
    )
    audit_hmac_key: SecretStr | None = None  # for content hashes; better in a file
    audit_hmac_key_file: Path | None = None
    audit_excerpt_chars: Annotated[int, Field(ge=1, le=2000)] = 200
    log_content_max: LogContent = "hash"  # the most that a policy's defaults.log.content may ask for
    engine: str = "transformers"  # a key of ENGINES
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    dtype: str = "auto"  # auto | float32 | bfloat16 | float16
    layers_path: str | None = (
        None  # where the decoder blocks are, for architectures that the finder can't resolve
    )
    max_batch: Annotated[int, Field(ge=1, le=1024)] = 16
    max_context: Annotated[int, Field(ge=16)] | None = None
    kv_memory: Annotated[str, AfterValidator(_size)] = "auto"  # what the KV cache may take: auto, or as 4GiB
    max_waiting: Annotated[int, Field(ge=0)] = 256  # responses; more are refused
    queue_timeout_s: Annotated[float, Field(gt=0)] = 30.0  # nobody waits longer for a row
    request_timeout_s: Annotated[float, Field(gt=0)] | None = (
        None  # from admission to the end; None: no limit
    )
    max_body_bytes: Annotated[int, Field(ge=1024)] = 8 * 1024 * 1024
    max_prompt_tokens: Annotated[int, Field(ge=1)] | None = None  # None: what the context leaves
    prefill_chunk: Annotated[int, Field(ge=1)] = 256
    last_good: Path | None = None  # keeps the last right policy, to start on if this one is wrong
    reload_poll_s: Annotated[float, Field(ge=0)] = (
        2.0  # how often the files of policy and keys are looked at; 0: never
    )
    drain_delay_s: Annotated[float, Field(ge=0)] = (
        5.0  # after SIGTERM, not ready but serving, until it is noticed
    )
    drain_timeout_s: Annotated[float, Field(ge=0)] = 30.0  # from then on, before what still runs is ended
    monitor_breaker_failures: Annotated[int, Field(ge=1)] = (
        10  # responses in which a monitor failed, and it is left alone
    )
    monitor_breaker_window_s: Annotated[float, Field(gt=0)] = 60.0  # within which they count
    monitor_breaker_recovery_s: Annotated[float, Field(gt=0)] = 30.0  # then it is tried again
    stream_stalled_s: Annotated[float, Field(gt=0)] = (
        30.0  # a client that takes nothing for so long is given up
    )
    step_timeout_s: Annotated[float, Field(gt=0)] = (
        30.0  # a forward pass that takes longer has hung: its requests fail
    )
    canary: OnError = (
        "closed"  # a monitor fails its canaries: closed refuses requests, open serves and counts
    )
    canary_interval_s: Annotated[float, Field(gt=0)] = 300.0
    prefix_cache_tokens: Annotated[int, Field(ge=0)] = 16_384


def read_settings(**given: Any) -> ServerConfig:
    """`given` over the environment over defaults. Raises ValueError that names each setting that is wrong, and never its value."""
    try:
        return ServerConfig(**given)
    except ValidationError as error:
        problems = [": ".join([*map(str, problem["loc"]), problem["msg"]]) for problem in error.errors()]
    raise ValueError("\n".join(problems))


def for_serving(**given: Any) -> ServerConfig:
    """What `interlock serve` runs by: the demo's policy and monitors belong to the demo's model. Raises ValueError."""
    config = read_settings(**given)
    if config.model == str(DEMO / "model"):
        named = {"served_model_name": config.served_model_name or "interlock-demo"}
        return config.model_copy(update=named)
    if config.policy == DEMO_POLICY and "policy" not in config.model_fields_set:
        raise ValueError(
            "--model needs --policy: which rules hold is never guessed. See deploy/policies/ for examples."
        )
    return config if "monitors" in config.model_fields_set else config.model_copy(update={"monitors": None})
