"""Schemas that are being compiled, by tenant: compiling takes turns, and one tenant's schemas must not take all of them."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from server.engines.base import EngineBusy


class PendingSchemas:
    """At most so many different ones of a tenant at a time."""

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._by_tenant: dict[str, Counter[str]] = {}

    @contextmanager
    def one(self, tenant: str, source: str) -> Iterator[None]:
        """While it is being compiled. The same one twice counts once. Raises EngineBusy."""
        pending = self._by_tenant.setdefault(tenant, Counter())
        if source not in pending and len(pending) >= self._most:
            raise EngineBusy(f"{self._most} schemas of this tenant wait to be compiled")
        pending[source] += 1
        try:
            yield
        finally:
            pending[source] -= 1
            if not pending[source]:
                del pending[source]
            if not pending:
                self._by_tenant.pop(tenant, None)
