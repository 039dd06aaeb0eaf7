"""The two ports: taken, and their certificates read, before anything slow begins."""

import contextlib
import socket
from collections.abc import Generator
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from server.config import ServerConfig
from server.http_protocol import HttpProtocol
from server.tls import Certificates, TlsFiles

_BACKLOG = 2048  # connections that wait to be accepted
_SILENT_PEER_S = 300  # a connection whose other end takes nothing for so long is gone, whatever it says
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class Port:
    """Listens, and speaks HTTPS if it has certificates."""

    name: str  # api | admin
    host: str
    listener: socket.socket
    certificates: Certificates | None

    @property
    def url(self) -> str:
        scheme = "http" if self.certificates is None else "https"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.listener.getsockname()[1]}"

    def serve(self, app: ASGIApp) -> "PortServer":
        certificates = self.certificates
        return PortServer(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",  # of the application that comes later
                http=HttpProtocol,
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=5,
                ssl_context_factory=None if certificates is None else lambda *_: certificates.context,
            )
        )


class PortServer(uvicorn.Server):
    """Signals are not its own: two of them share one loop, and streams must end properly before they stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def open_ports(config: ServerConfig) -> tuple[Port, Port]:
    """The serving port and the admin port. Raises TlsError, and OSError for a port that can't be had; each names what to change."""
    certificates = _certificates("api", config.tls), _certificates("admin", config.admin_tls)
    api = Port("api", config.host, bind(config.host, config.port), certificates[0])
    try:
        admin = bind(config.admin_host, config.admin_port)
    except OSError:
        api.listener.close()
        raise
    return api, Port("admin", config.admin_host, admin, certificates[1])


def _certificates(port: str, files: TlsFiles | None) -> Certificates | None:
    return None if files is None else Certificates(files, port)


def bind(host: str, port: int) -> socket.socket:
    """Take a port. Raises OSError that names it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; what is accepted inherits it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENT_PEER_S * 1000)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        raise OSError(
            f"can't listen on {host}:{port}: {error}; choose another with --port or --admin-port"
        ) from error
    return listener


def exposed(port: Port, *, has_keys: bool) -> str:
    """What is wrong with how a port is open to others; empty if nothing is."""
    if port.host in _LOOPBACK:
        return ""
    certificates = port.certificates
    if not has_keys and not (certificates is not None and certificates.asks_clients):
        what = "use it" if port.name == "api" else "reload policies, drain the server and read its metrics"
        return f"no --keys: whoever reaches {port.url} may {what}. Make some: interlock keys create --help"
    if certificates is None:
        return f"no --tls-cert: keys and texts travel in the clear to {port.url}"
    return ""
