"""From settings to a `Service`: load the model, the monitors and the policy, and check that they fit before anything is served."""

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path

import structlog
import torch
from transformers.utils import logging as transformers_logging

from guard.policy import Policy
from guard.types import JsonObject
from monitors.artifacts import MonitorSet, load_folder
from monitors.selfcheck import check_hooks
from server.auditing.content import ContentRules, read_key
from server.auditing.files import Rotation
from server.auditing.writer import AuditLog, LogSettings
from server.canary import CanaryWatch
from server.config import ServerConfig
from server.drift import DriftCollector, DriftWatch
from server.engines import engine_class
from server.engines.base import Engine
from server.engines.transformers.engine import EngineSettings
from server.engines.transformers.model import LoadedModel, load_model
from server.keys.store import KeyStore
from server.last_good import LastGood
from server.limits.memory import MemoryStore
from server.limits.shared import SharedStore
from server.limits.types import LimitStore
from server.memory import DEFAULT_CONTEXT, KvPlan, Wanted, budget, choose, kv_bytes_per_token
from server.metrics import Metrics
from server.monitor_breakers import BreakerSettings, MonitorBreakers
from server.monitor_probe import works
from server.policy_store import PolicyStore, Sources
from server.readiness import Heartbeat
from server.scheduling.line import Line
from server.second_opinion.config import Target, read_targets
from server.second_opinion.metrics import OpinionMetrics
from server.second_opinion.targets import SecondOpinions
from server.service import Service
from server.telemetry.types import NoTelemetry, Telemetry
from server.tokenizer import ModelTokenizer
from server.vllm_metrics import VllmNames

_log = structlog.get_logger()
_MOST_CHOICES = 64  # of one request, and more


def assemble(config: ServerConfig) -> Service:
    """Build everything. Raises EngineError, HookPointError, ArtifactError, PolicyError, AuditError or OSError; then nothing is served."""
    serving_engine = engine_class(config.engine)  # a wrong name is told before anything is loaded
    transformers_logging.disable_progress_bar()
    content = content_rules(config)
    targets = read_targets(config.second_opinions, os.environ) if config.second_opinions else ()
    limits = limit_store(config)
    keys = KeyStore(config.keys, utc_now, limits) if config.keys else None
    loaded = load_model(
        config.model,
        device=config.device,
        dtype=config.dtype,
        layers_path=config.layers_path,
        model_id=config.served_model_name,
    )
    check = check_hooks(loaded.model, loaded.blocks, _check_tokens(loaded))
    _log.info("hook points checked", layers=check.num_layers, last_layer=check.last_layer)
    plan = kv_plan(config, loaded)
    max_context = plan.max_context
    policies = PolicyStore(
        Sources(config.policy, config.monitors, partial(load_monitors, config.monitors, loaded)),
        max_response_tokens=max_context,
        targets=[target.name for target in targets],
        check=content.check,
        last_good=LastGood(config.last_good) if config.last_good else None,
    )
    settings = EngineSettings(
        max_batch=plan.max_batch,
        max_context=max_context,
        max_waiting=plan.max_batch
        + _MOST_CHOICES,  # who waits does so in the line; it lets in whole requests
        prefill_chunk=config.prefill_chunk,
        prefix_cache_tokens=plan.prefix_tokens,
        step_timeout_s=config.step_timeout_s,
    )
    engine: Engine = serving_engine(loaded, policies.in_force.monitors, settings)
    metrics = create_metrics(engine.info.model_id, policies.current)
    metrics.model_info.labels(engine.info.model_id, engine.info.dtype, engine.info.fingerprint[:12]).set(1)
    line = Line(slots=engine.info.max_batch, max_waiting=config.max_waiting, timeout_s=config.queue_timeout_s)
    metrics.load.watch(engine.load, line)
    if isinstance(limits, SharedStore):
        limits.on_failed = lambda disposition: metrics.failures.labels("limits", disposition).inc()
    metrics.policy_reload_ok.set(not policies.last_error)
    if not policies.last_error:
        metrics.policy_reload_time.set_to_current_time()
    monitors = policies.in_force.monitors
    metrics.show_monitors(monitors)
    engine.watch_passes(metrics.passed)
    drift = DriftWatch()
    drift.install(monitors.monitors)
    metrics.registry.register(DriftCollector(drift, engine.row_norms))
    if config.metrics_compat == "vllm":
        metrics.registry.register(VllmNames(metrics))
    canary = CanaryWatch(
        engine,
        on_failure=config.canary,
        on_checked=metrics.monitors.checked,
    )
    canary.expect(monitors)
    service = Service(
        engine=engine,
        tokenizer=ModelTokenizer(loaded.tokenizer),
        policies=policies,
        metrics=metrics,
        second_opinions=second_opinions(targets, metrics),
        audit=open_audit(config.audit, metrics, log_settings(config)),
        content=content,
        series=config.audit_series,
        show_scores=config.show_scores,
        block_style=config.block_style,
        telemetry=_telemetry(config),
        clock=time.monotonic,
        now=utc_now,
        started=int(utc_now().timestamp()),
        heartbeat=Heartbeat(config.step_timeout_s),
        settings=config.model_dump(mode="json"),
        drift=drift,
        canary=canary,
        keys=keys,
        line=line,
        kv_plan=plan,
        breakers=monitor_breakers(metrics, engine, policies, breaker_settings(config)),
        stream_stalled_s=config.stream_stalled_s,
        request_timeout_s=config.request_timeout_s,
        max_body_bytes=config.max_body_bytes,
        max_prompt_tokens=config.max_prompt_tokens,
    )
    service.compare_tenants()
    return service


def utc_now() -> datetime:
    return datetime.now(UTC)


def kv_plan(config: ServerConfig, loaded: LoadedModel) -> KvPlan:
    """Sizes of the KV cache that fit this machine. Raises MemoryBudgetError."""
    names = {"max_batch": "max_batch", "max_context": "max_context", "prefix_cache_tokens": "prefix_tokens"}
    wanted = Wanted(
        config.max_batch,
        min(loaded.max_positions, config.max_context or DEFAULT_CONTEXT),
        config.prefix_cache_tokens,
        frozenset(names[name] for name in config.model_fields_set & set(names)),
    )
    found = budget(config.kv_memory, loaded.model.device)
    plan = choose(wanted, kv_bytes_per_token(loaded.model), *found)
    _log.info("KV cache", plan=str(plan), bytes=plan.num_bytes, budget_bytes=plan.budget_bytes)
    if (plan.max_batch, plan.max_context) != (wanted.max_batch, wanted.max_context):
        _log.warning("the KV cache is smaller than its default, to fit", plan=str(plan))
    return plan


def limit_store(config: ServerConfig) -> LimitStore:
    """Raises ValueError."""
    local = MemoryStore(time.monotonic)
    if config.limits_redis is None:
        return local
    if config.keys is None:
        raise ValueError("limits_redis shares the limits of keys, and there are none: give --keys, too")
    try:
        from server.limits.redis import RedisStore  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise ValueError("limits_redis needs redis-py: pip install 'interlock[redis]'") from error
    shared = RedisStore(config.limits_redis, timeout_s=config.limits_timeout_s)
    return SharedStore(shared, local, on_error=config.limits_on_error, clock=time.monotonic)


def load_monitors(folder: Path | None, loaded: LoadedModel) -> MonitorSet:
    """The artifacts of a folder, checked against the model; an empty set without a folder."""
    if folder is None:
        return MonitorSet()
    return load_folder(
        folder,
        fingerprint=loaded.fingerprint,
        d_model=loaded.blocks.d_model,
        num_layers=len(loaded.blocks.layers),
    )


def create_metrics(model_id: str, policy: Policy) -> Metrics:
    metrics = Metrics(model=model_id)
    metrics.build_info.labels(version("interlock")).set(1)
    metrics.show_policy(policy)
    return metrics


def second_opinions(targets: Sequence[Target], metrics: Metrics) -> SecondOpinions:
    shown = OpinionMetrics(metrics.registry, [target.name for target in targets])
    opinions = SecondOpinions(targets, on_told=shown.told)
    shown.watch(lambda: opinions.breakers)
    return opinions


def monitor_breakers(
    metrics: Metrics, engine: Engine, policies: PolicyStore, settings: BreakerSettings | None = None
) -> MonitorBreakers:
    async def probe(monitor: str) -> bool:
        return await works(monitor, engine, policies.in_force, time.monotonic)

    return MonitorBreakers(settings, probe=probe, on_change=metrics.monitors.breaker_is)


def breaker_settings(config: ServerConfig) -> BreakerSettings:
    return BreakerSettings(
        failures=config.monitor_breaker_failures,
        window_s=config.monitor_breaker_window_s,
        recovery_s=config.monitor_breaker_recovery_s,
    )


def content_rules(config: ServerConfig) -> ContentRules:
    """Raises AuditError for a key that can't be read."""
    if config.audit is None:
        return ContentRules()
    secret = config.audit_hmac_key.get_secret_value() if config.audit_hmac_key else None
    key = read_key(secret, config.audit_hmac_key_file)
    return ContentRules(config.log_content_max, key, config.audit_excerpt_chars)


def log_settings(config: ServerConfig) -> LogSettings:
    max_age = timedelta(seconds=config.audit_max_age_s)
    return LogSettings(
        on_full=config.audit_on_full,
        max_queued=config.audit_max_queued,
        fsync_s=config.audit_fsync_s,
        rotation=Rotation(config.audit_max_bytes, max_age, config.audit_keep),
    )


def open_audit(path: Path | None, metrics: Metrics, settings: LogSettings | None = None) -> AuditLog | None:
    """Raises AuditError."""
    if path is None:
        return None

    def dropped(record: JsonObject) -> None:
        metrics.audit.dropped.inc()
        if record["action"] != "allow":
            metrics.failures.labels("audit", "open").inc()

    log = AuditLog(
        path,
        settings,
        on_written=metrics.audit.records.inc,
        on_dropped=dropped,
        on_error=metrics.audit.errors.inc,
    )
    metrics.audit.watch(log)
    return log


def _check_tokens(loaded: LoadedModel) -> torch.Tensor:
    ids = torch.randint(0, loaded.vocab_size, (1, 12), generator=torch.Generator().manual_seed(0))
    return ids.to(loaded.model.device)


def _telemetry(config: ServerConfig) -> Telemetry:
    """Raises ValueError without the extra."""
    if config.telemetry == "off":
        return NoTelemetry()
    try:
        from server.telemetry.otlp import Otlp  # noqa: PLC0415  # an optional extra
    except ImportError as error:
        raise ValueError("telemetry: otlp needs OpenTelemetry: pip install 'interlock[otel]'") from error
    return Otlp(version("interlock"))
