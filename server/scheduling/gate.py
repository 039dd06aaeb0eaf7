"""Gives each request its turn in the line, and takes it back however the request ends."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server.keys.types import Client
from server.scheduling.line import Line
from server.scheduling.turn import Turn


class TurnGate:
    """Stands behind the gate that says who asks. Whatever runs the model enters by `request.state.turn`."""

    def __init__(self, app: ASGIApp, *, line: Line, clock: Callable[[], float]) -> None:
        self._app = app
        self._line = line
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client: Client = scope["state"]["client"]
        # asked only while a request stands in line, when its body was read: then nothing but its end can come
        turn = Turn(self._line, client.standing, Request(scope, receive).is_disconnected, self._clock)
        scope["state"]["turn"] = turn
        try:
            await self._app(scope, receive, send)
        finally:
            turn.leave()
