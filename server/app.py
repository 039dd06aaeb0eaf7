"""Builds the HTTP applications from a `Service`. The only place that lists the routers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

from anyio import to_thread
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from server.api import (
    admin,
    chat,
    completions,
    debug,
    health,
    litellm_guardrail,
    messages,
    models,
    moderations,
    responses,
    tokenizing,
)
from server.api.described import ERRORS
from server.api.errors import ApiError, handle_api_error, handle_validation_error
from server.keys.gate import KeyGate
from server.keys.types import KeyScope
from server.lag import watch_lag
from server.limits.gate import LimitGate
from server.middleware import Bounds, RequestContext
from server.scheduling.gate import TurnGate
from server.service import Service


def create_app(service: Service, *, expose_metrics: bool = False) -> FastAPI:
    """The serving port: the OpenAI surface. Starting it starts the engine, and stopping it stops the engine."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.engine.start()
        service.metrics.load.watch_tasks(asyncio.get_running_loop())
        lag = asyncio.create_task(watch_lag(service.metrics.loop_lag.observe))
        try:
            yield
        finally:
            lag.cancel()
            await service.engine.stop()
            await service.second_opinions.close()
            await to_thread.run_sync(service.telemetry.close)
            if service.keys is not None:
                await service.keys.close()
            if service.audit is not None:
                service.audit.close()

    app = _plain_app(service, lifespan, KeyScope.INFER)
    for router in (
        chat.router,
        completions.router,
        responses.router,
        messages.router,
        moderations.router,
        litellm_guardrail.router,
        tokenizing.router,
        models.router,
        health.router,
    ):
        app.include_router(router)
    if expose_metrics:
        app.include_router(health.metrics_router)
    return app


def create_admin_app(service: Service) -> FastAPI:
    """The admin port: what operators and their tools may see."""
    app = _plain_app(service, None, KeyScope.ADMIN)
    app.state.document = cache(create_app(service).openapi)
    for router in (health.router, health.metrics_router, admin.router, debug.router):
        app.include_router(router)
    return app


def _plain_app(service: Service, lifespan: object, needed: KeyScope) -> FastAPI:
    """`needed` is the scope of keys for all paths that have none of their own."""
    app = FastAPI(
        title="Interlock",
        lifespan=lifespan,  # type: ignore[arg-type]
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # it would send clients to whatever their Host header says
        responses=ERRORS,
        telemetry={"logs": False},  # FastAPI's default records exception messages, which may hold prompts
    )
    app.state.service = service
    app.add_exception_handler(ApiError, handle_api_error)
    app.add_exception_handler(RequestValidationError, handle_validation_error)
    app.add_exception_handler(HTTPException, _handle_http_exception)
    app.add_middleware(Bounds, max_body_bytes=service.max_body_bytes)
    if needed is KeyScope.INFER:
        app.add_middleware(TurnGate, line=service.line, clock=service.clock)
        app.add_middleware(LimitGate, metrics=service.metrics)
    app.add_middleware(KeyGate, keys=service.keys, metrics=service.metrics.keys, needed=needed)
    app.add_middleware(RequestContext, metrics=service.metrics, drain=service.drain)
    app.add_middleware(service.telemetry.wrapped)
    return app


_CODES = {
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "body_too_large",
    415: "unsupported_media_type",
}


async def _handle_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals (no such path, wrong method, body too large) in the shape of the surface that was asked."""
    assert isinstance(error, HTTPException)  # noqa: S101  # registered for this type only
    code = _CODES.get(error.status_code)
    headers = dict(error.headers or {})  # which methods are allowed
    told = ApiError(error.status_code, str(error.detail), code=code, headers=headers)
    return told.response(request.url.path)
