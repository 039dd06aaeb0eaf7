"""OpenAI-shaped errors. Their texts never quote the request beyond the names of its fields.

ApiError
 |-- bad_request        400 invalid_request_error (a field is wrong, or not supported)
 |-- context_too_long   400 context_length_exceeded
 |-- unauthenticated    401 invalid_api_key
 |-- not_allowed        403 insufficient_scope (the key is for something else)
 |-- forbidden          403 (the key may not ask for that)
 |-- model_not_found    404 model_not_found
 |-- rate_limited       429 rate_limit_exceeded
 |-- overloaded         503 overloaded
     |-- draining           503 draining
 |-- unavailable        503 interlock_unavailable (the guard could not judge and fails closed)
 |-- too_slow           504 deadline_exceeded
 `-- internal           500 internal_error
"""

import random
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.requests import Request
from starlette.responses import Response

from server.api.fields import REFUSED
from server.engines.base import EngineBusy, EngineDead, EngineError, EngineStopped, RequestRefused
from server.limits.allowance import OverLimit
from server.limits.types import Unit
from server.pipeline import LeakPreventedError
from server.scheduling.types import DeadlineError

_MAX_REPORTED = 5  # validation problems named in one message
Body = dict[str, Any]


class ApiError(Exception):
    """An answer other than 200, with everything the wire needs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        extra: Body | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.body: Body = {
            "error": {"message": message, "type": kind, "param": param, "code": code},
            **(extra or {}),
        }

    def response(self, path: str) -> Response:
        """In the shape of the surface at this path."""
        body = anthropic_body(self) if path.startswith(_ANTHROPIC_PATH) else self.body
        return Response(
            orjson.dumps(body),
            status_code=self.status,
            headers=self.headers,
            media_type="application/json",
        )


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def context_too_long(message: str, param: str) -> ApiError:
    return ApiError(400, message, param=param, code="context_length_exceeded")


def model_not_found(message: str) -> ApiError:
    return ApiError(404, message, param="model", code="model_not_found")


def unauthenticated(*, expired: bool = False) -> ApiError:
    """Says the same of every key that doesn't count; that it has expired is told only to who has its secret."""
    told = (
        "This API key has expired." if expired else "A valid API key is needed: Authorization: Bearer ilk_…"
    )
    return ApiError(401, told, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def not_allowed(scope: str) -> ApiError:
    told = f"This API key does not have the scope '{scope}', which is needed here."
    return ApiError(403, told, code="insufficient_scope")


def forbidden(message: str, param: str, code: str) -> ApiError:
    return ApiError(403, message, param=param, code=code)


def rate_limited(why: OverLimit) -> ApiError:
    """Over a limit of the key or its tenant: when to come again, or that the request is too large to ever be admitted."""
    per = _PERIODS.get(why.period_s, f"{why.period_s:g} s")
    told = f"Rate limit reached: {why.limit} {why.unit} per {per}."
    if why.wait_s is None:
        told = f"This request is too large: it asks for {why.asked} {why.unit}, and {why.limit} are allowed per {per}."
        headers = {"x-should-retry": "false"}
    else:
        told += f" Try again in {ceil(why.wait_s)} s."
        headers = {"Retry-After": str(ceil(why.wait_s)), "retry-after-ms": str(ceil(why.wait_s * 1000))}
        if why.unit is Unit.BLOCKS:
            headers["x-should-retry"] = "false"
    return ApiError(429, told, kind=why.unit, code="rate_limit_exceeded", headers=headers)


_PERIODS = {60.0: "minute", 3600.0: "hour"}


def limits_unavailable() -> ApiError:
    return unavailable("Limits can't be checked at the moment, so requests are refused.")


def overloaded(retry_after_s: float = 2.0) -> ApiError:
    """Says when to come again: not to all the same, or they would come at once."""
    wait_s = ceil(retry_after_s * random.uniform(1.0, 1.5))  # noqa: S311  # not a secret
    return ApiError(
        503,
        "The server is at capacity; try again shortly.",
        kind="server_error",
        code="overloaded",
        headers={"Retry-After": str(wait_s)},
    )


def too_slow() -> ApiError:
    headers = {"x-should-retry": "false"}  # it would take as long again
    told = "The request took longer than this server gives any."
    return ApiError(504, told, kind="server_error", code="deadline_exceeded", headers=headers)


def client_gone() -> ApiError:
    """Nobody hears it; it is what is counted."""
    return ApiError(499, "The client went away.", code="client_closed_request")


def draining() -> ApiError:
    headers = {"Retry-After": "5"}
    return ApiError(
        503, "The server is shutting down.", kind="server_error", code="draining", headers=headers
    )


def unavailable(
    message: str = "The guard could not judge this request, and fails closed.", extra: Body | None = None
) -> ApiError:
    # asking again at once would fail alike, so tell the SDK not to
    return ApiError(
        503,
        message,
        kind="server_error",
        code="interlock_unavailable",
        headers={"Retry-After": "10", "x-should-retry": "false"},
        extra=extra,
    )


def internal() -> ApiError:
    return ApiError(500, "Internal error.", kind="server_error", code="internal_error")


def from_failure(error: BaseException) -> ApiError:
    """What a client is told of anything that a generation raised."""
    match error:
        case ApiError():
            return error
        case RequestRefused():
            return bad_request(str(error))
        case DeadlineError():
            return too_slow()
        case EngineBusy():
            return overloaded()
        case EngineStopped():
            return draining()
        case EngineDead():
            return unavailable("The model is not running.")
        case EngineError():
            return ApiError(
                503, "The model failed on this request.", kind="server_error", code="engine_error"
            )
        case LeakPreventedError():
            return unavailable()
        case _:
            return internal()


def from_validation(error: RequestValidationError) -> ApiError:
    """Location and message only: pydantic's own text repeats the input, which is a prompt."""
    problems = error.errors()
    if problems[0]["type"] == "json_invalid":
        return bad_request("the body is not valid JSON")
    named = [_told(problem) for problem in problems[:_MAX_REPORTED]]
    if len(problems) > _MAX_REPORTED:
        named.append(f"and {len(problems) - _MAX_REPORTED} more")
    return bad_request("; ".join(named)[:1000], param=_param(problems[0]))


def _param(problem: Mapping[str, Any]) -> str | None:
    """The field that is wrong, in dots: by its place, and by name where a check of the whole object names it."""
    place = _place(problem)
    if problem["type"] != REFUSED:
        return place or None
    name = str(problem["ctx"]["field"])
    return f"{place}.{name}" if place else name


def _told(problem: Mapping[str, Any]) -> str:
    place = _place(problem)
    if problem["type"] == REFUSED and not place:
        return str(problem["msg"])
    if problem["type"] == _UNKNOWN:
        return f"{place or 'body'}: has a field that is not known here"
    if problem["type"] == "union_tag_invalid":  # pydantic's words repeat the input
        return f"{place}: type must be one of {problem['ctx']['expected_tags']}"
    told = str(problem["msg"]).removeprefix("Value error, ")  # pydantic's, before a check's own words
    return f"{place or 'body'}: {told}"


_OPEN_KEYS = frozenset({"logit_bias", "metadata"})  # dicts whose keys are the client's own
_UNKNOWN = "extra_forbidden"


def _place(problem: Mapping[str, Any]) -> str:
    """Where in the body, without repeating what the client made up."""
    loc: Sequence[int | str] = problem["loc"]
    loc = loc[:-1] if problem["type"] == _UNKNOWN else loc
    parts = [str(part) for part in loc if part != "body" and "[" not in str(part)]  # nor a union's branches
    return f"{parts[0]}.*" if parts and parts[0] in _OPEN_KEYS and len(parts) > 1 else ".".join(parts)[:200]


_ANTHROPIC_PATH = "/v1/messages"
_ANTHROPIC_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def anthropic_body(error: ApiError) -> Body:
    """An error as Anthropic's API shapes it, with OpenAI's `code` and `param` beside."""
    kind = "api_error" if error.status >= 500 else "invalid_request_error"  # noqa: PLR2004  # HTTP's classes
    own = {**error.body["error"], "type": _ANTHROPIC_KINDS.get(error.status, kind)}
    return {**error.body, "type": "error", "error": own}


async def handle_api_error(request: Request, error: Exception) -> Response:
    return from_failure(error).response(request.url.path)


async def handle_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  # registered for this type only
    return from_validation(error).response(request.url.path)
