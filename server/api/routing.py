"""The router of the routes that take a body: JSON in UTF-8 that everybody reads alike, or a clear refusal.

A proxy in front may read the first of two equal keys, and this server the last: what was checked there would not be what runs here.
"""

import json
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NoReturn

import numpy as np
from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

_MAX_DEPTH = 128  # of objects and arrays in each other; whatever recurses over a body can take it
_STEPS = bytes.maketrans(
    bytes(range(256)), bytes({b"[": 1, b"{": 1, b"]": 255, b"}": 255}.get(bytes([c]), 0) for c in range(256))
)


class _NotJsonError(ValueError):
    """The reader's own refusals."""


class _StrictRequest(Request):
    async def body(self) -> bytes:
        body = await super().body()
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if (
            body
            and kind != "application/json"
            and not (kind.startswith("application/") and kind.endswith("+json"))
        ):
            raise HTTPException(415, "the body must be JSON, with the content-type application/json")
        return body

    async def json(self) -> Any:
        return read(await self.body())


class _StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return strict


class Router(APIRouter):
    def __init__(self, **options: Any) -> None:
        super().__init__(route_class=_StrictRoute, **options)


def read(body: bytes) -> Any:
    """Raises HTTPException 400, which says what is wrong and nothing of the text."""
    try:
        text = body.decode("utf-8-sig")
        if _depth(body) > _MAX_DEPTH:
            raise HTTPException(400, f"the body is nested more than {_MAX_DEPTH} deep")
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        told = "the body is not valid UTF-8"
    except json.JSONDecodeError:
        told = "the body is not valid JSON"
    except _NotJsonError as error:
        told = str(error)
    except ValueError:  # Python reads no integers of thousands of digits
        told = "the body has a number with too many digits"
    raise HTTPException(400, told)


def _depth(body: bytes) -> int:
    """How deep objects and arrays stand in each other, before anything recurses over them. In one pass, whatever it is made of."""
    if body.count(b"[") + body.count(b"{") <= _MAX_DEPTH:
        return 0
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # so that each quote begins or ends a text
    quotes = np.frombuffer(plain, np.uint8) == ord('"')
    is_outside = quotes.cumsum(dtype=np.uint8) % 2 == 0
    steps = np.frombuffer(plain.translate(_STEPS), np.int8)
    return int((steps * is_outside).cumsum(dtype=np.int32).max(initial=0))


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _NotJsonError("the body has an object with the same key twice")
    return found


def _refuse_constant(_: str) -> NoReturn:
    raise _NotJsonError("the body has NaN or Infinity, which are not JSON")
