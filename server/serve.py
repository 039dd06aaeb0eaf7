"""One server process: both ports in one event loop, from before the model is loaded until what runs has come to an end."""

import asyncio
import contextlib
import faulthandler
import functools
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any, NoReturn

import structlog

from server.app import create_admin_app, create_app
from server.config import ServerConfig
from server.loading import Loading
from server.ports import Port, PortServer
from server.readiness import watch
from server.service import Service
from server.service_manager import ServiceManager

_log = structlog.get_logger()
_STEP_END_S = 4.0  # a step that takes longer hangs
_LAST_SIGNAL = 3  # the third one


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


def run(load: Callable[[], Service], config: ServerConfig, api: Port, admin: Port) -> None:
    """Listen, `load` in a thread, serve until SIGINT or SIGTERM, drain. Raises what `load` raises."""
    faulthandler.register(signal.SIGUSR1)  # the stacks of all threads, also while the event loop hangs
    asyncio.run(_run(load, config, api, admin))


async def _run(load: Callable[[], Service], config: ServerConfig, api: Port, admin: Port) -> None:
    process = _Process(config, (api, admin))
    api_door, admin_door = Loading(), Loading()
    async with _listening({api.serve(api_door): api, admin.serve(admin_door): admin}) as stop_listening:
        service = await asyncio.to_thread(load)
        app = create_app(service, expose_metrics=config.expose_metrics)
        async with app.router.lifespan_context(app):
            process.take(service)
            api_door.app, admin_door.app = app, create_admin_app(service)
            process.manager.tell("READY=1")
            is_clean = await process.until_the_end()
            await stop_listening()  # before the log is closed: requests are recorded when they end
            if not is_clean:  # whatever waits for the engine's thread now would wait for ever
                _close_log(service)
                _exit(1)


@contextlib.asynccontextmanager
async def _listening(
    servers: dict[PortServer, Port],
) -> AsyncIterator[Callable[[], Coroutine[Any, Any, None]]]:
    """Answer on the ports; what is yielded stops that, and waits for answers that are on their way."""
    tasks = [asyncio.create_task(server.serve(sockets=[port.listener])) for server, port in servers.items()]

    async def stop() -> None:
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*tasks)

    try:
        yield stop
    finally:
        await stop()


class _Process:
    """What signals and changed files mean to this process, and how it ends."""

    def __init__(self, config: ServerConfig, ports: Iterable[Port]) -> None:
        self.manager = ServiceManager()
        self._config = config
        self._certificates = [port.certificates for port in ports if port.certificates is not None]
        self._service: Service | None = None  # none while the model is being loaded
        self._num_signals = 0
        self._told_to_end = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._end, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

    def take(self, service: Service) -> None:
        """The model is loaded: watch what may change."""
        self._service = service
        metrics, poll_s = service.metrics, self._config.reload_poll_s
        metrics.readiness.watch(service)
        for certificates in self._certificates:
            metrics.tls.show(certificates)
        self._start(watch(service))
        self._start(self.manager.keep_alive(lambda: not service.pulse.is_hopeless))
        if service.canary is not None:
            policies = service.policies
            self._start(
                service.canary.watch(lambda: policies.in_force.monitors, self._config.canary_interval_s)
            )
        if not poll_s:
            return
        self._start(service.policies.watch(service.try_reload, poll_s))
        if service.keys is not None:
            self._start(service.keys.watch(service.try_reload_keys, poll_s))
        for certificates in self._certificates:
            reload = functools.partial(metrics.tls.reload, certificates)
            self._start(certificates.watch(reload, poll_s))

    async def until_the_end(self) -> bool:
        """Return when nothing runs any more and a signal has told the process to end. False: a step of the engine hangs."""
        service, config = self._service, self._config
        assert service is not None, "taken before"  # noqa: S101
        line = service.line
        num_left = await service.drain.run(
            lambda: line.running + line.waiting,
            delay_s=config.drain_delay_s,
            timeout_s=config.drain_timeout_s,
        )
        line.close()
        is_clean = True
        if num_left:
            _log.warning("responses are cut short", responses=num_left)
            service.second_opinions.give_up()
            is_clean = await _stop_engine(service)
        service.drain.finish()
        _log.info("drained")
        await self._told_to_end.wait()
        for task in self._background:
            task.cancel()
        return is_clean and await _stop_engine(service)

    def _end(self, number: signal.Signals) -> None:
        self._num_signals += 1
        if self._service is None or self._num_signals >= _LAST_SIGNAL:
            _exit(0 if self._service is None else 128 + number)
        self._told_to_end.set()
        drain = self._service.drain
        if self._num_signals == 1:
            self.manager.tell("STOPPING=1")
            _log.info("draining", signal=number.name)
            drain.begin(unnoticed=number is signal.SIGINT)  # a person at a terminal, not an orchestrator
        else:
            _log.warning(
                "ending at once; a third signal ends without the rest of the log", signal=number.name
            )
            drain.hurry()

    def _reload(self) -> None:
        """Of all that can be reloaded, each by itself."""
        if (service := self._service) is None:
            return
        self._start(service.try_reload())
        self._start(service.try_reload_keys())
        for certificates in self._certificates:
            self._start(service.metrics.tls.reload(certificates))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def _stop_engine(service: Service) -> bool:
    """Whoever waits for a step hears of it. False: a step that runs does not end."""
    try:
        async with asyncio.timeout(_STEP_END_S):
            await service.engine.stop()
    except TimeoutError:
        _log.error("a step of the engine hangs")
        return False
    return True


def _close_log(service: Service) -> None:
    if service.audit is not None:
        service.audit.close()


def _exit(code: int) -> NoReturn:
    """At once: threads that load or run the model are not waited for."""
    sys.stderr.flush()
    os._exit(code)
