"""Counts each request against the limits of who sends it, before its body is read; shows in headers what is left."""

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import ApiError, limits_unavailable, rate_limited
from server.keys.types import Client
from server.limits.allowance import OverLimitError
from server.limits.types import LimitsUnavailableError
from server.metrics import Metrics

_log = structlog.get_logger()
_FREE = frozenset({"GET", "HEAD", "OPTIONS"})  # they ask for nothing that costs


@contextmanager
def refusals_as_answers(metrics: Metrics) -> Iterator[None]:
    """What limits refuse is counted, and raised as the ApiError that the client gets."""
    try:
        yield
    except OverLimitError as error:
        metrics.shed.labels("rate_limit").inc()
        raise rate_limited(error.why) from error
    except LimitsUnavailableError as error:
        raise limits_unavailable() from error


class LimitGate:
    """Stands behind the gate that says who asks."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client: Client = scope["state"]["client"]
        allowance = client.allowance

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                shown = [(name.encode(), value.encode()) for name, value in allowance.headers.items()]
                message["headers"] = [*message.get("headers", []), *shown]
            elif not message.get("more_body", False):
                await self._settle(client)  # before the client hears the end: its next request meets it
            await send(message)

        try:
            if scope["method"] not in _FREE:
                with refusals_as_answers(self._metrics):
                    await allowance.take_request()
        except ApiError as error:
            await error.response(scope["path"])(scope, receive, send_with_limits)
            return
        try:
            await self._app(scope, receive, send_with_limits)
        finally:
            await self._settle(client)  # of what was cut off

    async def _settle(self, client: Client) -> None:
        try:
            await client.allowance.settle()
        except LimitsUnavailableError:
            _log.warning("what a request used could not be counted", key_id=client.key_id)
