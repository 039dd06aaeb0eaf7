"""What every request passes through, as plain ASGI: bounds of size and time; an id, a count, a log line."""

import asyncio
import re
import secrets
from collections.abc import Sequence
from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import ApiError, from_failure
from server.drain import Drain
from server.metrics import Metrics
from server.stacks import raised_at

_log = structlog.get_logger()
_VALID_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_MAX_HEADERS, _MAX_HEADER_BYTES = 128, 32 * 1024
_BODY_S = 60.0  # from the end of the head to the end of the body
Headers = Sequence[tuple[bytes, bytes]]
_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})


class Bounds:
    """Refuses requests that are too large, or too slow, or that two readers would take for different ones.

    (FastAPI's own `max_body_size` answers in plain text, which the OpenAI client can't read.)
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            declared = _declared_bytes(scope["headers"])
        except ApiError as error:
            await error.response(scope["path"])(scope, receive, send)
            return
        counted, is_whole = 0, False
        deadline = asyncio.get_running_loop().time() + _BODY_S

        async def limited() -> Message:
            nonlocal counted, is_whole
            try:
                async with asyncio.timeout_at(None if is_whole else deadline):
                    message = await receive()
            except TimeoutError as error:
                told = f"the body did not come within {_BODY_S:g} s"
                raise HTTPException(408, told, headers={"connection": "close"}) from error
            is_whole = not message.get("more_body", False)
            counted += len(message.get("body", b""))
            if max(declared, counted) > self._max_body_bytes:
                raise HTTPException(413, f"the body is larger than {self._max_body_bytes} bytes")
            return message

        await self._app(scope, limited, send)


def _declared_bytes(headers: Headers) -> int:
    """The length of the body, where it is declared. Raises ApiError for a head that no honest client sends."""
    size = sum(len(name) + len(value) for name, value in headers)
    if len(headers) > _MAX_HEADERS or size > _MAX_HEADER_BYTES:
        told = f"A request may have {_MAX_HEADERS} headers of {_MAX_HEADER_BYTES} bytes together."
        raise ApiError(431, told, code="headers_too_large", headers={"connection": "close"})
    given = {name: value for name, value in headers if name in {b"content-length", b"transfer-encoding"}}
    if len(given) > 1:
        told = "A request has either content-length or transfer-encoding."
        raise ApiError(400, told, code="invalid_http", headers={"connection": "close"})
    declared = given.get(b"content-length", b"")
    return int(declared) if declared.isdigit() else 0


class RequestContext:
    """Gives each request an id (a valid inbound `x-request-id`, or a new one), and counts it by route template.

    What nobody expected is answered and logged here, without its message, which may hold text of the request; nobody further
    out, who would log or trace all of it, hears of it.

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
        except Exception as error:  # noqa: BLE001  # whatever it is
            _log.error(
                "a request failed", error=type(error).__name__, at=raised_at(error), request_id=request_id
            )
            if not status:
                await from_failure(error).response(scope["path"])(scope, receive, send_with_id)
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
