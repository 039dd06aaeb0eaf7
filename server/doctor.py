"""What a machine and a configuration lack for `interlock serve`, told before it is tried. One check a function; none changes anything."""

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from guard.errors import PolicyError
from server.config import ServerConfig
from server.doctor_model import check_memory, check_model
from server.findings import Finding, Level
from server.keys.store import KeyStore
from server.ports import bind
from server.sizes import written
from server.tls import Certificates, TlsError
from server.tools.check import check as check_policies
from server.tools.loading import Where

if TYPE_CHECKING:
    import httpx  # heavy

_MOST_SKEW_S = 30.0  # from there on, exceptions and keys expire at another time than one thinks
_LEAST_DISK = 1 << 20  # bytes; less is a full disk


def examine(config: ServerConfig, client: "httpx.Client") -> Iterator[Finding]:
    """All findings, in the order in which one would repair them. `client`: of the admin port, where a server may answer."""
    checks: tuple[Callable[[ServerConfig], Finding], ...] = (
        check_build,
        check_device,
        check_model,
        check_memory,
        check_policy,
        check_keys,
        check_tls,
        check_audit,
    )
    for check in checks:
        yield check(config)
    running = tuple(check_server(config, client))
    yield check_ports(config, is_running=any(finding.level is not Level.NONE for finding in running))
    yield from running


def check_build(_: ServerConfig) -> Finding:
    has_gpu = Path("/dev/nvidia0").exists()
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    found = f"Python {platform.python_version()}, torch {torch.__version__} ({build}), {torch.get_num_threads()} CPU threads"
    if has_gpu and not torch.version.cuda:
        return Finding.warning("build", f"{found}; but there is a GPU", "install torch's CUDA build")
    if torch.version.cuda and not torch.cuda.is_available():
        why = "the driver does not work with this build" if has_gpu else "there is no GPU"
        todo = "install a newer driver, or another build of torch" if has_gpu else "a CPU build is smaller"
        return Finding("build", Level.WARNING if has_gpu else Level.OK, f"{found}; {why}", todo)
    return Finding.ok("build", found)


def check_device(config: ServerConfig) -> Finding:
    try:
        device = torch.device("cpu" if config.device == "auto" else config.device)
    except RuntimeError:
        return Finding.problem(
            "device", f"{config.device!r} is none", "give auto, cpu, cuda or cuda:N as device"
        )
    if (
        config.device != "cpu"
        and torch.cuda.is_available()
        and (device.index or 0) < torch.cuda.device_count()
    ):
        free, whole = torch.cuda.mem_get_info(device.index or 0)
        name = torch.cuda.get_device_name(device.index or 0)
        return Finding.ok("device", f"{name}, {written(free)} of {written(whole)} free")
    if device.type == "cuda":
        return Finding.problem(
            "device", f"no {config.device} here", "give device auto or cpu, or see `build`"
        )
    return Finding.ok("device", "CPU")


def check_policy(config: ServerConfig) -> Finding:
    report = check_policies([config.policy], Where(config.monitors, config.max_context), strict=False)
    told = "; ".join(str(problem) for problem in report.problems)
    todo = "interlock policy check --help"
    if report.code:
        return Finding.problem("policy", told, todo)
    return Finding.warning("policy", told, todo) if told else Finding.ok("policy", report.text)


def check_keys(config: ServerConfig) -> Finding:
    if config.keys is None:
        return Finding.ok("keys", "none: whoever reaches a port may use it")
    try:
        keys = KeyStore(config.keys, lambda: datetime.now(UTC))
    except (PolicyError, OSError) as error:
        return Finding.problem("keys", str(error), "interlock keys create --help")
    if not keys.num_keys:
        return Finding.warning("keys", f"{config.keys}: no key, so nobody gets in", "interlock keys create")
    return Finding.ok("keys", f"{keys.num_keys} of {len(keys.tenants)} tenants")


def check_tls(config: ServerConfig) -> Finding:
    if config.tls is None and config.admin_tls is None:
        return Finding.ok("tls", "none: both ports speak plain HTTP")
    try:
        for port, files in (("api", config.tls), ("admin", config.admin_tls)):
            if files is not None:
                Certificates(files, port)
    except TlsError as error:
        return Finding.problem("tls", str(error), "mend the file, or name another")
    return Finding.ok("tls", "certificates and keys can be used")


def check_audit(config: ServerConfig) -> Finding:
    if config.audit is None:
        return Finding.warning("audit", "no decision log", "give a file as audit to keep decisions")
    path = config.audit.absolute()
    folder = next(parent for parent in path.parents if parent.exists())  # the server makes what is missing
    if not folder.is_dir() or path.is_dir():
        return Finding.problem("audit", f"{path} can't be a file", "name a file in a folder as audit")
    target = path if path.exists() else folder
    if not os.access(target, os.W_OK):
        return Finding.problem("audit", f"{target} can't be written", "let the server's user write there")
    free = shutil.disk_usage(folder).free
    found = f"{path}, {written(free)} free"
    if free < _LEAST_DISK:
        return Finding.problem("audit", found, "make room: without a log no request is admitted")
    if free < config.audit_max_bytes:
        return Finding.warning("audit", f"{found}: less than one file of the log", "make room")
    return Finding.ok("audit", found)


def check_ports(config: ServerConfig, *, is_running: bool) -> Finding:
    """Takes both for a moment."""
    with ExitStack() as taken:
        try:
            for host, port in ((config.host, config.port), (config.admin_host, config.admin_port)):
                taken.enter_context(bind(host, port))
        except OSError as error:
            if is_running:
                return Finding.ok("ports", "in use, and a server runs")
            return Finding.problem("ports", str(error), "end what listens there, or give other ports")
    return Finding.ok("ports", f"{config.port} and {config.admin_port} are free")


def check_server(config: ServerConfig, client: "httpx.Client") -> Iterator[Finding]:
    """Of a server that answers on the admin port: ready, metrics, policy in force and clock."""
    import httpx  # noqa: PLC0415

    try:
        ready = client.get("/readyz")
        checks: list[dict[str, Any]] = ready.json()["checks"]
        metrics, policy = client.get("/metrics"), client.get("/-/policy")
    except httpx.ConnectError:
        yield Finding("server", Level.NONE, f"none answers on {client.base_url}")
        return
    except (httpx.TransportError, ValueError, KeyError, TypeError):
        yield Finding(
            "server", Level.NONE, f"what answers on {client.base_url} is no admin port of Interlock"
        )
        return
    failing = [f"{check['name']}: {check.get('note', 'failing')}" for check in checks if not check["ok"]]
    if failing:
        yield Finding.problem("server", "not ready: " + "; ".join(failing), "see docs/running.md")
    else:
        yield Finding.ok("server", f"ready on {client.base_url}")
    yield _metrics(metrics)
    yield _in_force(config, policy)
    yield _clock(ready)


def _metrics(reply: "httpx.Response") -> Finding:
    if reply.status_code in {401, 403}:
        return Finding.warning(
            "metrics",
            "the server wants a key",
            "--key-file names a file with a key of the scopes debug and admin",
        )
    if not reply.is_success or "interlock_build_info" not in reply.text:
        return Finding.problem("metrics", f"/metrics answered {reply.status_code}", "see the server's log")
    return Finding.ok("metrics", "Prometheus can read them")


def _in_force(config: ServerConfig, reply: "httpx.Response") -> Finding:
    if not reply.is_success:
        return Finding.warning(
            "in force",
            f"/-/policy answered {reply.status_code}",
            "--key-file names a file with a key of the scope admin",
        )
    told = reply.json()
    if told["last_error"]:
        return Finding.problem(
            "in force", f"{told['policy']}, not what is on disk: {told['last_error']}", "mend it"
        )
    report = check_policies([config.policy], Where(config.monitors, config.max_context), strict=False)
    if told["digest"] not in {policy["digest"] for policy in report.data["policies"]}:
        return Finding.warning(
            "in force",
            f"{told['policy']}, not {config.policy}",
            "POST /-/reload, or name the policy that the server was started with",
        )
    return Finding.ok("in force", f"{told['policy']}, as on disk")


def _clock(reply: "httpx.Response") -> Finding:
    try:
        there = parsedate_to_datetime(reply.headers["date"])
    except (KeyError, ValueError):
        return Finding.warning("clock", "the server tells no time", "look for a proxy in between")
    skew_s = abs((datetime.now(UTC) - there).total_seconds())
    if skew_s > _MOST_SKEW_S:
        return Finding.warning("clock", f"{skew_s:.0f} s apart from the server's", "synchronise both (NTP)")
    return Finding.ok("clock", "agrees with the server's")
