"""Runs the two ports in one event loop, until a signal."""

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Generator

import structlog
import uvicorn
from fastapi import FastAPI

from guard.errors import PolicyError
from server.app import create_admin_app, create_app
from server.config import ServerConfig
from server.service import Service

_log = structlog.get_logger()


class _QuietServer(uvicorn.Server):
    """A second server in the loop: the first one owns the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def set_up_logging(*, verbose: bool = False) -> None:
    """JSON lines on standard error. Neither prompts nor replies are ever logged."""
    level = logging.DEBUG if verbose else logging.INFO
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,  # frames and messages, never local variables
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )


def run(service: Service, config: ServerConfig) -> None:
    """Serve until SIGINT or SIGTERM."""
    asyncio.run(_run(service, config))


async def _run(service: Service, config: ServerConfig) -> None:
    main = uvicorn.Server(
        _uvicorn(create_app(service, expose_metrics=config.expose_metrics), config.host, config.port)
    )
    admin = _QuietServer(_uvicorn(create_admin_app(service), config.admin_host, config.admin_port))
    admin_task = asyncio.create_task(admin.serve())
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, service)
    try:
        await main.serve()
    finally:
        admin.should_exit = True
        await admin_task


def _reload(service: Service) -> None:
    """SIGHUP: read the policy again."""
    try:
        service.reload_policy()
    except (PolicyError, OSError, ValueError) as error:
        _log.error("policy not reloaded; the last good one stays", reason=str(error))


def _uvicorn(app: FastAPI, host: str, port: int) -> uvicorn.Config:
    return uvicorn.Config(
        app, host=host, port=port, log_config=None, access_log=False, timeout_graceful_shutdown=10
    )
