"""Runs the two ports in one event loop, until a signal; then lets what runs come to an end."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Generator

import structlog
import uvicorn
from fastapi import FastAPI

from server.app import create_admin_app, create_app
from server.config import ServerConfig
from server.service import Service

_log = structlog.get_logger()


class _Server(uvicorn.Server):
    """Signals are ours: two servers share one loop, and streams must end properly before they stop."""

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


def bind(host: str, port: int) -> socket.socket:
    """Take a port before anything slow begins. Raises OSError that names it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise OSError(
            f"can't listen on {host}:{port}: {error}; choose another with --port or --admin-port"
        ) from error
    return listener


def run(service: Service, config: ServerConfig, api: socket.socket, admin: socket.socket) -> None:
    """Serve on two bound sockets until SIGINT or SIGTERM."""
    asyncio.run(_run(service, config, api, admin))


async def _run(service: Service, config: ServerConfig, api: socket.socket, admin: socket.socket) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    background: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references

    def reload() -> None:
        background.add(asyncio.create_task(service.try_reload()))
        background.add(asyncio.create_task(service.try_reload_keys()))

    loop.add_signal_handler(signal.SIGHUP, reload)
    if config.reload_poll_s:
        watching = service.policies.watch(service.try_reload, config.reload_poll_s)
        background.add(asyncio.create_task(watching))
    if config.reload_poll_s and service.keys is not None:
        watching = service.keys.watch(service.try_reload_keys, config.reload_poll_s)
        background.add(asyncio.create_task(watching))
    if service.canary is not None:
        in_force = service.policies
        checking = service.canary.watch(lambda: in_force.in_force.monitors, config.canary_interval_s)
        background.add(asyncio.create_task(checking))
    servers = {
        _Server(_uvicorn(create_app(service, expose_metrics=config.expose_metrics))): api,
        _Server(_uvicorn(create_admin_app(service))): admin,
    }
    tasks = [asyncio.create_task(server.serve(sockets=[listener])) for server, listener in servers.items()]
    await asyncio.wait([asyncio.create_task(stop.wait()), *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in background:
        task.cancel()
    await _drain(service, config.drain_timeout_s)
    for server in servers:
        server.should_exit = True
    await asyncio.gather(*tasks)


async def _drain(service: Service, timeout_s: float) -> None:
    """Admit nothing new, let what runs finish, and end the rest with an error event."""
    service.drain.begun = True
    deadline = service.clock() + timeout_s
    while service.clock() < deadline:
        load = service.engine.load()
        if not load.running and not load.waiting and not service.line.waiting:
            break
        await asyncio.sleep(0.05)
    service.line.close()
    await service.engine.stop()
    service.second_opinions.give_up()


def _uvicorn(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5)
