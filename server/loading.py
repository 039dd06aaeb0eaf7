"""What a port answers until the application is there: alive, but neither started nor ready."""

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.errors import ApiError
from server.readiness import Check, report

_EMPTY = frozenset({"/health", "/ping"})
_PROBES = frozenset({"/readyz", "/startupz"})


class Loading:
    """Stands before an application that is still being made, then hands everything on to it."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self.app or _answer(scope["path"])
        await answer(scope, receive, send)


def _answer(path: str) -> Response:
    if path == "/livez":
        return report()
    if path in _EMPTY:
        return Response(status_code=503)
    if path in _PROBES:
        return report(Check("model", is_passed=False, note="it is being loaded"))
    headers = {"Retry-After": "10"}
    told = "The model is being loaded."
    error = ApiError(503, told, kind="server_error", code="model_loading", headers=headers)
    return error.response(path)
