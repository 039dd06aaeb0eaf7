"""The only module that knows the HTTP client. One pool for all targets; answers are bounded, redirects are not followed."""

import httpx

from server.second_opinion.types import AskError, HttpRequest

MAX_ANSWER_BYTES = 64 * 1024
_CONNECT_ATTEMPTS = 2
_KEEP_ALIVE_S = 2.0  # below what servers allow, so that none closes a connection just as it is used
_ABOUT_THE_TEXT = frozenset(
    {400, 413, 422}
)  # too long, or refused by a filter: says nothing about other texts
_HEADERS = {"content-type": "application/json", "accept": "application/json", "accept-encoding": "identity"}


class HttpClient:
    """TLS certificates are checked, against the system's or SSL_CERT_FILE. Proxies and .netrc are not looked at."""

    def __init__(self) -> None:
        transport = httpx.AsyncHTTPTransport(
            verify=httpx.create_ssl_context(),
            retries=_CONNECT_ATTEMPTS - 1,  # of connecting only: nothing is sent twice
            limits=httpx.Limits(max_connections=None, keepalive_expiry=_KEEP_ALIVE_S),
        )
        self._client = httpx.AsyncClient(
            transport=transport, headers={"user-agent": "interlock"}, follow_redirects=False, trust_env=False
        )

    async def post(self, request: HttpRequest, timeout_s: float) -> bytes:
        """The body of a 200. Raises AskError. The caller bounds the whole; `timeout_s` is shared by attempts to connect."""
        timeout = httpx.Timeout(None, connect=timeout_s / _CONNECT_ATTEMPTS)
        try:
            async with self._client.stream(
                "POST",
                request.url,
                content=request.body,
                headers={**_HEADERS, **request.headers},
                timeout=timeout,
            ) as response:
                return await _body(response)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise AskError("not_reached") from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise AskError("broken_off") from error

    async def close(self) -> None:
        await self._client.aclose()


async def _body(response: httpx.Response) -> bytes:
    if response.status_code != httpx.codes.OK:
        code = response.status_code
        raise AskError(f"status_{code}", counts=code not in _ABOUT_THE_TEXT)
    if response.headers.get("content-encoding", "identity") != "identity":
        raise AskError("compressed")  # it was asked not to be, and may unpack to any size
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise AskError("too_large")
    return bytes(body)
