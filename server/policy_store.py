"""The policy in force. A reload replaces it whole or not at all; a request keeps the one it was admitted under."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import structlog

from guard.policy import Policy, load_policy
from guard.policy_test import run_tests
from guard.types import MonitorInfo

_log = structlog.get_logger()


class PolicyStore:
    """Reads the policy at `path`, and reads it again when asked to."""

    def __init__(
        self,
        path: Path,
        monitors: Mapping[str, MonitorInfo],
        vectors: Collection[str],
        *,
        check: Callable[[Policy], None] = lambda _: None,
    ) -> None:
        """`check` raises ValueError for a policy that this server can't keep.

        Raises PolicyError, OSError or what `check` does: a server does not start on a policy that is wrong.
        """
        self._check = check
        self._path = path
        self._monitors = monitors
        self._vectors = vectors
        self.current = self._load()

    def reload(self) -> Policy:
        """Put the policy on disk in force. Raises PolicyError, OSError or ValueError (its tests fail); then the last good one stays."""
        fresh = self._load()
        failed = [result.name for result in run_tests(fresh).results if not result.ok]
        if failed:
            raise ValueError(f"tests of {fresh} fail: {', '.join(failed)}")
        self.current = fresh
        _log.info("policy reloaded", policy=str(fresh))
        return fresh

    def _load(self) -> Policy:
        policy = load_policy(self._path, monitors=self._monitors, vectors=self._vectors)
        self._check(policy)
        return policy
