"""uvicorn's HTTP/1.1, with what it leaves open: nobody holds a connection by sending nothing, slowly or for ever."""

import asyncio
import logging
import sys
from collections.abc import Callable

import h11
import orjson
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from server.api.errors import ApiError

_HEAD_S = 20.0  # from the first byte of a request, or the connection, to the end of the head
_LINGER_S = 2.0  # a body goes on coming so long after it was answered
_log = logging.getLogger("interlock.http")
_log.setLevel(logging.ERROR)  # uvicorn warns of each request that is not HTTP, which anybody may send


class HttpProtocol(H11Protocol):
    """For `uvicorn.Config(http=…)`."""

    _timer: asyncio.TimerHandle | None = None
    _is_lingering = False  # it runs for a body that nobody wants any more, not for a head

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self.logger = _log
        self._set_timer(_HEAD_S, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE or self.timeout_keep_alive_task is not None:
            return
        if self._timer is None or self._is_lingering:  # the next head has begun
            self._set_timer(_HEAD_S, self._head_is_late)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:  # a head has come
            self._unset_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:  # refused by its head
            self._set_timer(_LINGER_S, self.transport.close)
            self._is_lingering = True

    def send_400_response(self, msg: str) -> None:
        """Called where h11 raises."""
        status = getattr(sys.exc_info()[1], "error_status_hint", 400)
        if status == 431:  # noqa: PLR2004  # HTTP's number
            self._refuse(ApiError(431, "The head of the request is too large.", code="headers_too_large"))
        else:
            self._refuse(ApiError(400, "This is not a valid HTTP/1.1 request.", code="invalid_http"))

    def _head_is_late(self) -> None:
        self._refuse(ApiError(408, "The request did not come in time.", code="request_timeout"))

    def _refuse(self, error: ApiError) -> None:
        """Answer, unless an answer has begun; and close."""
        if self.transport.is_closing():
            return
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            body = orjson.dumps(error.body)
            headers = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "connection": "close",
            }
            head = h11.Response(
                status_code=error.status, headers=list(headers.items()), reason=STATUS_PHRASES[error.status]
            )
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # what it answers goes nowhere any more
            self.cycle.message_event.set()
        self.transport.close()

    def _set_timer(self, seconds: float, then: Callable[[], object]) -> None:
        self._unset_timer()
        self._is_lingering = False
        self._timer = self.loop.call_later(seconds, then)

    def _unset_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
