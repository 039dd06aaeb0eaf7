"""The policy in force. A reload replaces it whole or not at all; a request keeps the one it was admitted under."""

from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from guard.policy import Policy, load_policy
from guard.policy_test import run_tests
from guard.types import MonitorInfo, VectorInfo

_log = structlog.get_logger()


class PolicyStore:
    """Reads the policy at `path`, and reads it again when asked to."""

    def __init__(
        self,
        path: Path,
        monitors: Mapping[str, MonitorInfo],
        vectors: Mapping[str, VectorInfo],
        *,
        max_response_tokens: int | None = None,
        check: Callable[[Policy], None] = lambda _: None,
    ) -> None:
        """`check` raises ValueError for a policy that this server can't keep.

        Raises PolicyError, OSError or ValueError (its tests fail): a server does not start on a policy that is wrong.
        """
        self._check = check
        self._path = path
        self._monitors = monitors
        self._vectors = vectors
        self._max_response_tokens = max_response_tokens
        self.current = self._load()

    def reload(self) -> Policy:
        """Put the policy on disk in force. Raises PolicyError, OSError or ValueError (its tests fail); then the last good one stays."""
        fresh = self._load()
        self.current = fresh
        _log.info("policy reloaded", policy=str(fresh))
        return fresh

    def _load(self) -> Policy:
        policy = load_policy(
            self._path,
            monitors=self._monitors,
            vectors=self._vectors,
            max_response_tokens=self._max_response_tokens,
        )
        failed = [result.name for result in run_tests(policy).results if not result.ok]
        if failed:
            raise ValueError(
                f"tests of {policy} fail: {', '.join(failed)}; see: interlock policy test {self._path}"
            )
        self._check(policy)
        return policy
