"""Certificates of the two ports: read and checked at start, exchanged when their files change. What is wrong keeps the last good ones."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import structlog
from anyio import to_thread
from prometheus_client import CollectorRegistry, Counter, Gauge

from server.watching import watch

_log = structlog.get_logger()


class TlsError(Exception):
    """A file of a certificate is wrong; the text names the file and what to do."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Of one port, all PEM."""

    cert: Path  # with the certificates that lead to its CA
    key: Path  # not encrypted
    client_ca: Path | None = None  # who connects must have a certificate of one of these CAs

    def __iter__(self) -> Iterator[Path]:
        yield self.cert
        yield self.key
        if self.client_ca is not None:
            yield self.client_ca


class Certificates:
    """What one port shows, and asks for. `context` stays the same object; connections that are open keep what they began with."""

    def __init__(self, files: TlsFiles, port: str) -> None:
        """`port`: api or admin. Raises TlsError: a server does not start on a certificate that is wrong."""
        self.port = port
        self._files = files
        self._lock = asyncio.Lock()
        self.context = _Switch(ssl.PROTOCOL_TLS_SERVER)
        self.context.current, self._digest = self._read()

    @property
    def asks_clients(self) -> bool:
        """Whether who connects must have a certificate, too."""
        return self._files.client_ca is not None

    async def reload(self) -> None:
        """Show what is on disk to whoever connects from now on. Raises TlsError; then the last good ones stay."""
        async with self._lock:  # by signal and by poll at once: the later one reads later
            self.context.current, self._digest = await to_thread.run_sync(self._read)
        _log.info("certificate reloaded", port=self.port, file=str(self._files.cert))

    async def watch(self, reload: Callable[[], Awaitable[object]], poll_s: float) -> None:
        """Call `reload`, which must not raise, when the files have changed."""
        await watch(self._look, lambda: self._digest, reload, poll_s)

    def _read(self) -> tuple[ssl.SSLContext, str]:
        digest = self._look()  # first: what changes while it is read is read again
        return _context(self._files), digest

    def _look(self) -> str:
        whole = sha256()
        for file in self._files:
            try:
                whole.update(sha256(file.read_bytes()).digest())
            except OSError:
                whole.update(b"unreadable")
        return whole.hexdigest()


class _Switch(ssl.SSLContext):
    """Given to asyncio once, asked by it for each connection.

    A context that is in use can't be changed for good: a key of another kind would stand beside the old one, and a pair
    that is wrong would take its place half.
    """

    current: ssl.SSLContext

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return self.current.wrap_bio(*args, **kwargs)


def _context(files: TlsFiles) -> ssl.SSLContext:
    """TLS 1.2 or newer. Raises TlsError."""
    _check_pem(files.cert, "CERTIFICATE", "a certificate")
    _check_pem(files.key, "PRIVATE KEY", "a private key")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(files.cert, files.key, password="")  # never ask on a terminal
    except (ssl.SSLError, OSError) as error:
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            raise TlsError(f"{files.key}: not the key of the certificate in {files.cert}") from None
        why = _reason(error)
        raise TlsError(f"{files.cert} and {files.key}: can't be used as certificate and key: {why}") from None
    if files.client_ca is not None:
        _check_pem(files.client_ca, "CERTIFICATE", "a certificate")
        try:
            context.load_verify_locations(files.client_ca)
        except (ssl.SSLError, OSError) as error:
            raise TlsError(f"{files.client_ca}: can't be used as a CA: {_reason(error)}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _check_pem(file: Path, label: str, told: str) -> None:
    """What OpenSSL says of these is hard to read."""
    try:
        text = file.read_bytes()
    except OSError as error:
        raise TlsError(f"{file}: can't be read: {error.strerror}") from None
    if label.encode() + b"-----" not in text:
        raise TlsError(f"{file}: has not {told} in PEM form (-----BEGIN {label}-----)")
    if b"ENCRYPTED" in text:
        raise TlsError(f"{file}: is encrypted, and nobody is there to type its passphrase; give it without")


def _reason(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error.strerror or type(error).__name__)


class TlsMetrics:
    """`port` is api or admin."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.reloads = Counter(
            "interlock_tls_reloads_total",
            "Attempts to reload a port's certificate.",
            ("port", "result"),
            registry=registry,
        )
        self.reload_ok = Gauge(
            "interlock_tls_last_reload_successful",
            "1 if the certificate on disk is the one that the port shows.",
            ("port",),
            registry=registry,
        )

    async def reload(self, certificates: Certificates) -> None:
        """Reload where nobody waits for the answer: what was wrong is logged and counted."""
        port = certificates.port
        try:
            await certificates.reload()
        except TlsError as error:
            self.reloads.labels(port, "failure").inc()
            self.reload_ok.labels(port).set(0)
            _log.error("certificate not reloaded; the last good one stays", port=port, reason=str(error))
        else:
            self.reloads.labels(port, "success").inc()
            self.reload_ok.labels(port).set(1)

    def show(self, certificates: Certificates) -> None:
        """Create the series of a port that has a certificate."""
        for result in ("success", "failure"):
            self.reloads.labels(certificates.port, result)
        self.reload_ok.labels(certificates.port).set(1)
