"""How a command reaches a server that runs on this machine: by the same settings, and trusting the certificate that it shows."""

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from server.config import ServerConfig, read_settings
from server.tls import TlsFiles

if TYPE_CHECKING:
    import httpx  # heavy

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # what one connects to, where a server listens on all


def open_client(
    port: Literal["api", "admin"],
    *,
    url: str | None = None,
    key_file: Path | None = None,
    ca: Path | None = None,
    cert: Path | None = None,
    cert_key: Path | None = None,
) -> "httpx.Client":
    """A client of one of its ports; `url` names a server elsewhere. Raises ValueError and OSError."""
    import httpx  # noqa: PLC0415

    config = read_settings()
    files = config.tls if port == "api" else config.admin_tls
    context = ssl.create_default_context(cafile=ca)
    if url is None:
        url = _url(config, port, files)
        if files is not None and ca is None:
            # the file that the server shows is at hand, and names no loopback address: it is who has that key
            context.load_verify_locations(files.cert)
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.check_hostname = False
    if cert is not None:
        context.load_cert_chain(cert, cert_key)
    headers = {"authorization": f"Bearer {key_file.read_text().strip()}"} if key_file is not None else {}
    return httpx.Client(base_url=url, headers=headers, verify=context, trust_env=False, timeout=30)


def _url(config: ServerConfig, port: Literal["api", "admin"], files: TlsFiles | None) -> str:
    host, number = (config.host, config.port) if port == "api" else (config.admin_host, config.admin_port)
    host = _ANYWHERE.get(host, host)
    return f"{'http' if files is None else 'https'}://{f'[{host}]' if ':' in host else host}:{number}"
