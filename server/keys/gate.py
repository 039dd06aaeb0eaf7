"""Who may pass: every request to either port, as plain ASGI. With keys, a path that is not named here is refused without one."""

from typing import NoReturn

from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.errors import ApiError, not_allowed, unauthenticated
from server.keys.metrics import KeyMetrics
from server.keys.store import KeyRefusedError, KeyStore, Reason
from server.keys.types import Client, KeyScope, anyone

OPEN = frozenset({"/health", "/ping", "/livez", "/readyz", "/startupz"})
"""What answers without a key: whether the server is well, and nothing else."""
_OWN_SCOPE = {"/metrics": KeyScope.DEBUG}  # it names rules and monitors


class KeyGate:
    """Lets requests pass by their key, and tells what is behind who asks: `request.state.client`."""

    def __init__(self, app: ASGIApp, *, keys: KeyStore | None, metrics: KeyMetrics, needed: KeyScope) -> None:
        """`needed` is the scope for whatever has none of its own. Without keys, everybody passes."""
        self._app = app
        self._keys = keys
        self._metrics = metrics
        self._needed = needed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            client = self._client(scope)
        except ApiError as error:
            await error.response(scope["path"])(scope, receive, send)
            return
        scope.setdefault("state", {})["client"] = client
        await self._app(scope, receive, send)

    def _client(self, scope: Scope) -> Client:
        """Raises ApiError."""
        if self._keys is None or scope["path"] in OPEN:
            return anyone()
        given = _given(scope)
        if given is None:
            self._refuse("missing", unauthenticated())
        try:
            client = self._keys.client(given)
        except KeyRefusedError as error:
            self._refuse(error.reason, unauthenticated(expired=error.reason == "expired"))
        needed = _OWN_SCOPE.get(scope["path"], self._needed)
        if needed not in client.scopes:
            self._refuse("scope", not_allowed(needed))
        return client

    def _refuse(self, reason: Reason, error: ApiError) -> NoReturn:
        self._metrics.refused.labels(reason).inc()
        raise error


def _given(scope: Scope) -> str | None:
    """The key of a request: `Authorization: Bearer …`, or `x-api-key` as Anthropic's clients send it. None: no one key."""
    found: dict[bytes, list[str]] = {b"authorization": [], b"x-api-key": []}
    for name, value in scope["headers"]:
        if name in found:
            found[name].append(value.decode("latin-1"))
    match found[b"authorization"], found[b"x-api-key"]:
        case [header], _:
            kind, _, key = header.partition(" ")
            return key.strip() if kind.lower() == "bearer" else None
        case [], [key]:
            return key.strip()
        case _:
            return None
