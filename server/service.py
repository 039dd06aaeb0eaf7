"""What one running server is made of. Built once by `app.create_app`'s caller; nothing is global."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import structlog
from pydantic import JsonValue

from guard.audit import SeriesFormat
from guard.policy import Policy
from server.auditing.content import ContentRules
from server.auditing.writer import AuditLog
from server.canary import CanaryWatch
from server.drain import Drain
from server.drift import DriftWatch
from server.engines.base import Engine
from server.grammars.pending import PendingSchemas
from server.keys.coverage import unknown_tenants
from server.keys.store import KeyStore
from server.keys.types import BlockStyle
from server.memory import KvPlan
from server.metrics import Metrics
from server.monitor_breakers import MonitorBreakers
from server.policy_store import PolicyStore
from server.readiness import Heartbeat, Pulse
from server.scheduling.line import Line
from server.second_opinion.targets import SecondOpinions
from server.telemetry.types import NoTelemetry, Telemetry
from server.tokenizer import Tokenizer

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Service:
    """The parts, and the two clocks that they share."""

    engine: Engine
    tokenizer: Tokenizer
    policies: PolicyStore
    metrics: Metrics
    audit: AuditLog | None
    clock: Callable[[], float]  # monotonic seconds
    now: Callable[[], datetime]  # aware, UTC
    second_opinions: SecondOpinions = field(default_factory=SecondOpinions)  # whom rules may ask
    content: ContentRules = field(default_factory=ContentRules)  # what of prompts and replies is recorded
    series: SeriesFormat = "exact"  # how scores are recorded
    show_scores: bool = False  # whether every client may see the monitors' scores
    started: int = 0  # Unix seconds
    telemetry: Telemetry = field(default_factory=NoTelemetry)
    max_body_bytes: int = 8 * 1024 * 1024
    drain: Drain = field(default_factory=Drain)
    heartbeat: Heartbeat = field(default_factory=Heartbeat)  # of the engine
    settings: Mapping[str, JsonValue] = field(default_factory=dict)  # as it was started, without secrets
    drift: DriftWatch = field(default_factory=DriftWatch)
    canary: CanaryWatch | None = None  # None: canaries are not run
    breakers: MonitorBreakers = field(default_factory=MonitorBreakers)
    line: Line = field(default_factory=Line)  # before the engine
    schemas: PendingSchemas = field(default_factory=PendingSchemas)
    kv_plan: KvPlan | None = None  # what the KV cache takes at most
    request_timeout_s: float | None = (
        None  # from admission to the end of the reply; None: as long as it takes
    )
    max_prompt_tokens: int | None = None  # None: the context
    stream_stalled_s: float = 30.0  # a client that takes nothing for so long is given up
    block_style: BlockStyle = BlockStyle.OPENAI  # of tenants that have none of their own
    keys: KeyStore | None = None  # None: whoever reaches a port may use it

    @property
    def served_models(self) -> tuple[str, ...]:
        return (self.engine.info.model_id,)

    @property
    def pulse(self) -> Pulse:
        """What the engine shows of life now."""
        return self.heartbeat.look(self.engine, self.clock())

    async def reload_policy(self, *, allow_shrink: bool = False) -> Policy:
        """Put policy and monitors on disk in force. Raises what `PolicyStore.reload` raises; then the last good ones stay."""
        kept, before = self.policies.current, self.policies.in_force.monitors
        try:
            policy = await self.policies.reload(self.engine.install, allow_shrink=allow_shrink)
        except Exception:
            self.metrics.policy_reloads.labels("failure").inc()
            self.metrics.policy_reload_ok.set(0)
            raise
        same = policy.digest == kept.digest and self.policies.in_force.monitors is before
        self.metrics.policy_reloads.labels("unchanged" if same else "success").inc()
        self.metrics.policy_reload_ok.set(1)
        self.metrics.policy_reload_time.set_to_current_time()
        self.metrics.show_policy(policy)
        self.compare_tenants()
        if self.policies.in_force.monitors is not before:
            self.metrics.show_monitors(self.policies.in_force.monitors)
            self.drift.install(self.policies.in_force.monitors.monitors)
            if self.canary is not None:
                self.canary.expect(self.policies.in_force.monitors)
                await self.canary.check(self.policies.in_force.monitors)
        return policy

    async def reload_keys(self) -> None:
        """Put the key file on disk in force. Raises PolicyError; then the last good keys stay."""
        if self.keys is None:
            return
        try:
            await self.keys.reload()
        except Exception:
            self.metrics.keys.reloads.labels("failure").inc()
            self.metrics.keys.reload_ok.set(0)
            raise
        self.metrics.keys.reloads.labels("success").inc()
        self.metrics.keys.reload_ok.set(1)
        self.compare_tenants()

    def compare_tenants(self) -> None:
        """Warn of tenants that the policy in force names and the key file does not have."""
        unknown = unknown_tenants(self.policies.current, self.keys.tenants) if self.keys else ()
        if unknown:
            _log.warning("the policy names tenants that the key file does not have", where=list(unknown))

    async def try_reload_keys(self) -> None:
        """`reload_keys` where nobody waits for the answer."""
        try:
            await self.reload_keys()
        except Exception as error:  # noqa: BLE001  # whatever is wrong with the file, the server goes on
            _log.error("keys not reloaded; the last good ones stay", reason=str(error))

    async def try_reload(self) -> None:
        """`reload_policy` where nobody waits for the answer: what was wrong goes to the log."""
        try:
            await self.reload_policy()
        except Exception as error:  # noqa: BLE001  # whatever is wrong with the files, the server goes on
            _log.error("policy not reloaded; the last good one stays", reason=str(error))

    def system_fingerprint(self, policy: Policy) -> str:
        """Changes when the model or the policy does, which is what the field is for."""
        parts = f"{self.engine.info.fingerprint}:{policy.digest}"
        return f"fp_{hashlib.sha256(parts.encode()).hexdigest()[:12]}"
