"""The policy in force, with the monitors it reads. A reload replaces both whole or not at all.

A request keeps what it was admitted under. What is on disk is compared by content, not by modification times or
notifications: a ConfigMap mount changes by swapping a symlink, which fools both.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import structlog
from anyio import to_thread

from guard.errors import PolicyError
from guard.files import policy_files
from guard.policy import Policy, load_policy
from guard.policy_test import run_tests
from guard.types import Budget, Mode, MonitorInfo, Scope, VectorInfo
from monitors.artifacts import ArtifactError, MonitorSet
from monitors.base import Evidence, Link, Monitor
from monitors.steering import SteeringVector
from monitors.types import CausalVerdict
from server.last_good import LastGood
from server.scoring import Scoring
from server.watching import watch

_log = structlog.get_logger()
_MAX_READS = 3
_SHRINK_LIMIT = 0.5  # of the enforced rules may vanish in one reload


@dataclass(frozen=True, slots=True)
class InForce:
    """What one request is admitted under: one reference, swapped at once."""

    policy: Policy
    monitors: MonitorSet
    scoring: Scoring
    sources: "Digests"  # of the files that all this was read from


@dataclass(frozen=True, slots=True)
class Digests:
    """What was on disk."""

    policy: str
    monitors: str


@dataclass(frozen=True, slots=True)
class Sources:
    """Where policy and monitors are read from."""

    policy: Path  # a file, or a folder of *.yaml
    monitors: Path | None  # a folder of artifacts
    read_monitors: Callable[[], MonitorSet]  # raises ArtifactError

    def digests(self) -> Digests:
        """Change with the content of any policy file and of any artifact's JSON (which holds its weights' hash)."""
        policies = policy_files(self.policy)
        artifacts = sorted(self.monitors.glob("*/*.json")) if self.monitors is not None else []
        return Digests(_digest(policies), _digest(artifacts))


class PolicyStore:
    """Reads policy and monitors, and reads them again when asked to."""

    def __init__(
        self,
        sources: Sources,
        *,
        vectors: Mapping[str, VectorInfo] | None = None,
        max_response_tokens: int | None = None,
        targets: Collection[str] | None = None,
        check: Callable[[Policy], None] = lambda _: None,
        last_good: LastGood | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`vectors` replaces what the artifacts say of vectors; `targets` can be asked for second opinions; `check` raises ValueError for a policy that this server can't keep.

        Raises PolicyError, ArtifactError, OSError or ValueError (its tests fail): a server does not start on a policy that is
        wrong, unless `last_good` has one that was right.
        """
        self._sources = sources
        self._vectors = vectors
        self._max_response_tokens = max_response_tokens
        self._targets = targets
        self._check = check
        self._last_good = last_good
        self._now = now
        self._lock = asyncio.Lock()
        self.last_error = ""
        """Why what is on disk is not in force; empty if it is."""
        self.in_force = self._first()
        self.loaded = now()
        """When the policy in force was loaded."""
        for file in frozen_mounts(policy_files(sources.policy)):
            _log.warning(
                "a policy file is a mount of its own and will never change; mount its folder", file=str(file)
            )

    @property
    def current(self) -> Policy:
        return self.in_force.policy

    def _first(self) -> InForce:
        try:
            first = self._read(self._sources.policy)
        except (PolicyError, OSError, ValueError) as error:
            kept = self._last_good and self._last_good.kept(self._sources.policy.name)
            if not kept:
                raise
            self.last_error = str(error)
            _log.error(
                "the policy is wrong; the last good one is served instead", reason=str(error), kept=str(kept)
            )
            return self._read(kept)
        self._keep(first)
        return first

    def _keep(self, good: InForce) -> None:
        """Keep the files of a policy that is right, unless they have changed since they were read."""
        if self._last_good is None:
            return
        try:
            if self._sources.digests() == good.sources:
                self._last_good.keep(self._sources.policy, policy_files(self._sources.policy))
        except OSError as error:
            _log.warning("the policy could not be kept as the last good one", reason=str(error))

    async def reload(
        self, install: Callable[[MonitorSet], Awaitable[None]], *, allow_shrink: bool = False
    ) -> Policy:
        """Put what is on disk in force; `install` exchanges the engine's monitors.

        Everything is read, checked and tested off the event loop, and nothing is changed until all of it is right.
        Raises PolicyError, ArtifactError, OSError or ValueError (its tests fail, or too many rules would vanish); then
        the last good one stays.
        """
        async with self._lock:
            try:
                self.in_force = fresh = await self._fresh(install, allow_shrink=allow_shrink)
            except Exception as error:
                self.last_error = str(error)
                raise
            self.last_error, self.loaded = "", self._now()
            await to_thread.run_sync(self._keep, fresh)
        _log.info("policy reloaded", policy=str(fresh.policy), monitors=len(fresh.monitors.monitors))
        return fresh.policy

    async def _fresh(
        self, install: Callable[[MonitorSet], Awaitable[None]], *, allow_shrink: bool
    ) -> InForce:
        fresh = await to_thread.run_sync(self._read, self._sources.policy)
        if not allow_shrink:
            self._refuse_shrink(fresh.policy)
        if fresh.sources.monitors == self.in_force.sources.monitors:
            return replace(fresh, monitors=self.in_force.monitors, scoring=self.in_force.scoring)
        await install(fresh.monitors)
        return fresh

    async def watch(self, reload: Callable[[], Awaitable[object]], poll_s: float) -> None:
        """Call `reload` whenever the files have changed and then stood still for one poll. `reload` must not raise."""
        await watch(self._look, lambda: self.in_force.sources, reload, poll_s)

    def _look(self) -> Digests:
        try:
            return self._sources.digests()
        except OSError:
            return Digests("unreadable", "unreadable")

    def _read(self, path: Path) -> InForce:
        """The policy at a path, with the monitors that are on disk: all of one moment.

        Files are read one after the other. If some were exchanged meanwhile, what was read may be half of this and half of
        that, so it is read again.
        """
        for _ in range(_MAX_READS):
            sources = self._sources.digests()
            try:
                read = self._read_once(path, sources)
            except (PolicyError, ArtifactError, OSError, ValueError):
                if self._look() == sources:
                    raise
            else:
                if self._look() == sources:
                    return read
        raise ValueError(
            "the files of policy and monitors keep changing while they are read; try again later"
        )

    def _read_once(self, path: Path, sources: Digests) -> InForce:
        monitors = self._sources.read_monitors()
        policy = load_policy(
            path,
            monitors=describe_monitors(monitors.monitors),
            vectors=describe_vectors(monitors.vectors.values()) if self._vectors is None else self._vectors,
            max_response_tokens=self._max_response_tokens,
            targets=self._targets,
        )
        failed = [result.name for result in run_tests(policy).results if not result.ok]
        if failed:
            told = f"tests of {policy} fail: {', '.join(failed)}"
            raise ValueError(f"{told}; see: interlock policy test {path}")
        self._check(policy)
        return InForce(policy, monitors, Scoring(monitors.monitors), sources)

    def _refuse_shrink(self, fresh: Policy) -> None:
        before, after = (
            {r.id for r in policy.rules if r.mode is Mode.ENFORCE} for policy in (self.current, fresh)
        )
        lost = before - after
        if before and (not fresh.rules or len(lost) > _SHRINK_LIMIT * len(before)):
            raise ValueError(
                f"{len(lost)} of {len(before)} enforced rules would vanish ({', '.join(sorted(lost)[:5])}); "
                "if that is meant: POST /-/reload?allow_shrink=true on the admin port"
            )


def frozen_mounts(files: Iterable[Path], mounts: Path = Path("/proc/self/mountinfo")) -> list[Path]:
    """Files that are mounts by themselves, as with Kubernetes' subPath: those never follow their ConfigMap.

    The fifth field of mountinfo is where something is mounted (proc(5)); elsewhere than on Linux nothing is known.
    """
    try:
        points = {line.split()[4] for line in mounts.read_text().splitlines()}
    except OSError:
        return []
    return [file for file in files if str(file.absolute()) in points]


def _digest(files: Iterable[Path]) -> str:
    whole = sha256()
    for path in files:
        content = path.read_bytes() if path.is_file() else b""
        whole.update(f"{path} {len(content)} ".encode() + content)
    return whole.hexdigest()


def describe_monitors(monitors: Iterable[Monitor]) -> dict[str, MonitorInfo]:
    """What the policy checks may know: names, ranges, calibrations, and what is against them."""
    return {monitor.name: _describe(monitor) for monitor in monitors}


def _describe(monitor: Monitor) -> MonitorInfo:
    low, high = (0.0, 1.0) if monitor.link is Link.SIGMOID else (None, None)
    info = MonitorInfo(monitor.name, low, high, version=monitor.version, barred=_barred(monitor))
    calibration = monitor.calibration
    if calibration is None:
        return info
    budgets = tuple(
        Budget(Scope(t.phase), t.fpr, t.value, t.certified, t.num_requests) for t in calibration.thresholds
    )
    return replace(
        info, budgets=budgets, num_benign=calibration.num_requests, confidence=calibration.confidence
    )


_SAE_KINDS = frozenset({"sae_feature", "sae_features"})


def _barred(monitor: Monitor) -> str:
    """What in its evidence is against acting on a monitor; empty if nothing is."""
    evidence = monitor.evidence or Evidence()
    if evidence.verdict is CausalVerdict.INVALID:
        return "its causal card found that it does not read the concept (verdict 'invalid')"
    if monitor.transform.kind in _SAE_KINDS and evidence.accepted is None:
        return "its SAE was not tested on plain text: run `interlock sae check`"
    if monitor.transform.kind in _SAE_KINDS and evidence.accepted is False:
        return "its SAE failed the acceptance test on plain text"
    return ""


def describe_vectors(vectors: Iterable[SteeringVector]) -> dict[str, VectorInfo]:
    """What the policy checks may know: names, and what the causal test allows."""
    return {
        vector.name: VectorInfo(vector.name, vector.steerable, vector.verdict or "") for vector in vectors
    }
