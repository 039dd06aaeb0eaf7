"""What every request passes through, as plain ASGI: a limit on the body; an id, a count, a log line."""

import re
import secrets
from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.drain import Drain
from server.metrics import Metrics

_log = structlog.get_logger()
_VALID_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})


class BodyLimit:
    """Refuses bodies over a size, by their declared length or as soon as they exceed it.

    (FastAPI's own `max_body_size` answers in plain text, which the OpenAI client can't read.)
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        declared = next(
            (value for name, value in scope.get("headers", []) if name == b"content-length"), b"0"
        )
        seen = int(declared) if declared.isdigit() else 0
        counted = 0

        async def limited() -> Message:
            nonlocal counted
            message = await receive()
            counted += len(message.get("body", b""))
            if max(seen, counted) > self._max_bytes:
                raise HTTPException(413, f"the body is larger than {self._max_bytes} bytes")
            return message

        await self._app(scope, limited, send)


class RequestContext:
    """Gives each request an id (a valid inbound `x-request-id`, or a new one), and counts it by route template.

    Once the server is on its way out, each answer is the last of its connection: a client or a load balancer that keeps
    connections open would go on sending here.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, drain: Drain) -> None:
        self._app = app
        self._metrics = metrics
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _inbound_id(scope) or secrets.token_hex(16)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
                if self._drain.is_begun:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            route = _route(scope)
            method = scope["method"] if scope["method"] in _METHODS else "OTHER"
            self._metrics.http_requests.labels(route, method, str(status or 499)).inc()
            _log.debug("request", route=route, status=status, request_id=request_id)


def _inbound_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _VALID_ID.fullmatch(value):
            return str(value.decode())
    return None


def _route(scope: Scope) -> str:
    """The route's template; what matched no route shares one label."""
    route: Any = scope.get("route")
    return str(getattr(route, "path", "other"))
