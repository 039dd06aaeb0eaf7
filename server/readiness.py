"""Whether the server may be sent requests, and whether it should be restarted: what probes and the entrance go by."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
import structlog
from prometheus_client import CollectorRegistry, Gauge
from starlette.responses import Response

from server.engines.base import Engine

if TYPE_CHECKING:
    from server.service import Service  # which holds a Heartbeat

_log = structlog.get_logger()
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Pulse:
    """What the engine shows of life."""

    is_alive: bool
    silent_s: float  # for how long it has been dead, or has owed somebody a step
    stalled_s: float  # when it owes one for that long, it hangs

    @property
    def trouble(self) -> str:
        """Why it can't be sent requests; empty if it can."""
        if not self.is_alive:
            return "the engine has ended"
        return f"no step for {self.silent_s:.0f} s, and one is due" if self.silent_s >= self.stalled_s else ""

    @property
    def is_hopeless(self) -> bool:
        """Whether only a restart helps: it has been so for twice that time."""
        return self.silent_s >= 2 * self.stalled_s


class Heartbeat:
    """Looks at the engine, and remembers since when it is dead."""

    def __init__(self, stalled_s: float = 30.0) -> None:
        self._stalled_s = stalled_s
        self._dead_since: float | None = None

    def look(self, engine: Engine, now: float) -> Pulse:
        """`now` in monotonic seconds."""
        if engine.is_alive:
            self._dead_since = None
            return Pulse(is_alive=True, silent_s=engine.load().step_age_s, stalled_s=self._stalled_s)
        if self._dead_since is None:
            self._dead_since = now
        return Pulse(is_alive=False, silent_s=now - self._dead_since, stalled_s=self._stalled_s)


@dataclass(frozen=True, slots=True)
class Check:
    """One condition of being ready. Open to everyone, so it names neither rules nor monitors."""

    name: str
    is_passed: bool = True
    note: str = ""  # why it fails, or what an operator should know though it passes

    @property
    def body(self) -> dict[str, Any]:
        return {"name": self.name, "ok": self.is_passed, **({"note": self.note} if self.note else {})}


def report(*checks: Check) -> Response:
    """The answer to a probe: 200 or 503, and each check."""
    passed = all(check.is_passed for check in checks)
    body = {"ok": passed, "checks": [check.body for check in checks]}
    return Response(orjson.dumps(body), status_code=200 if passed else 503, media_type="application/json")


def checks(service: "Service") -> tuple[Check, ...]:
    """All that must pass for the server to be ready."""
    trouble = service.pulse.trouble
    not_in_force = "what is on disk is wrong; the last good policy is in force"
    return (
        Check("engine", not trouble, trouble),
        Check("policy", note=not_in_force if service.policies.last_error else ""),
        _monitors(service),
        _decision_log(service),
        Check("drain", not service.drain.is_begun, service.drain.phase if service.drain.is_begun else ""),
    )


def is_ready(service: "Service") -> bool:
    return all(check.is_passed for check in checks(service))


class ReadinessMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._ready = Gauge(
            "interlock_ready", "1 if the server may be sent requests, as /readyz tells.", registry=registry
        )
        self._draining = Gauge(
            "interlock_draining", "1 once the server is on its way out.", registry=registry
        )

    def watch(self, service: "Service") -> None:
        """Look at every scrape."""
        self._ready.set_function(lambda: is_ready(service))
        self._draining.set_function(lambda: service.drain.is_begun)


def _monitors(service: "Service") -> Check:
    canary = service.canary
    if canary is None:
        return Check("monitors")
    note = f"{len(canary.failed)} monitors fail their canaries" if canary.failed else ""
    return Check(
        "monitors", not canary.refuses, "canaries have not passed yet" if canary.is_pending else note
    )


def _decision_log(service: "Service") -> Check:
    log = service.audit
    return Check("decision_log") if log is None else Check("decision_log", not log.refuses, log.trouble or "")


async def watch(service: "Service") -> None:
    """Log each change of what fails."""
    before: dict[str, str] = {}
    while True:
        failing = dict(_failing(service))
        if failing.keys() != before.keys():
            if failing:
                _log.warning("not ready", **failing)
            else:
                _log.info("ready")
        before = failing
        await asyncio.sleep(_LOOK_S)


def _failing(service: "Service") -> Iterator[tuple[str, str]]:
    return ((check.name, check.note) for check in checks(service) if not check.is_passed)
