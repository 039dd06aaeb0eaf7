"""A container as near as it comes without Docker: what the Dockerfile builds, run as the Deployment says, by Linux alone.

Namespaces of its own for mounts, processes and network (with nothing but loopback), a read-only root, the image's user
without capabilities, and the image's environment. The server is process 1, as in a container.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.dockerfile import Stage, stages
from tests.deploy.tools import DEPLOY, ROOT, run
from tests.waiting import until

USER = 10001
_UNSHARE = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child")
_CLONE_NEWNET = 0x40000000
_UNPRIVILEGED = (
    f"setpriv --reuid {USER} --regid {USER} --clear-groups --no-new-privs"
    " --bounding-set=-all --inh-caps=-all --ambient-caps=-all"
)
_ROOT_FOLDER = """
set -eu
mount -t tmpfs -o mode=755 tmpfs "$NEW_ROOT"
cd "$NEW_ROOT"
into() { mkdir -p "./$2"; mount --bind -o "$3" "$1" "./$2"; }
for folder in bin sbin lib lib32 lib64 libx32; do
    if [ -L "/$folder" ]; then cp -P "/$folder" .; elif [ -d "/$folder" ]; then into "/$folder" "$folder" ro; fi
done
into /usr usr ro
mkdir -p etc proc tmp dev
cp /etc/ld.so.cache etc/
echo "interlock:x:10001:10001::/var/lib/interlock:/usr/sbin/nologin" > etc/passwd
echo "127.0.0.1 localhost" > etc/hosts
mount -t proc proc proc
mount -t tmpfs -o mode=1777 tmpfs tmp
for device in null zero random urandom; do : > "dev/$device"; mount --bind "/dev/$device" "dev/$device"; done
"""
_LOOPBACK_UP = "import fcntl, socket, struct; fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sH14x', b'lo', 1))"  # SIOCSIFFLAGS, IFF_UP


def skip_unless_permitted() -> None:
    """Root may do all of this, unless something around it forbids it."""
    try:
        subprocess.run([*_UNSHARE, "mount", "-t", "proc", "proc", "/proc"], check=True, capture_output=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        told = getattr(error, "stderr", b"") or str(error).encode()
        pytest.skip(f"unshare is not permitted here: {told.decode().strip()}")


def build(image: Path) -> None:
    """Follow the Dockerfile's first stage, but for the packages, which are those that are installed here.

    `image` becomes what the image has at /opt/interlock.
    """
    source = image.parent / "source"
    inside = "/opt/interlock"
    image.mkdir()
    absolute: list[tuple[str, str]] = []
    for given, destination in stages(DEPLOY / "docker" / "Dockerfile")[0].copies:
        for name in given:
            if destination.startswith("/"):
                absolute.append((name, destination))
            else:
                _copy(
                    ROOT / name, source / destination / (Path(name).name if destination.endswith("/") else "")
                )
    python = f"{inside}/bin/python"
    site = image / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    build_here = [
        "mount -t tmpfs tmpfs /opt",  # of this namespace only
        f"mkdir {inside}",
        f"mount --bind {image} {inside}",
        f"{sys.executable} -m venv --without-pip {inside}",
        f"echo {sysconfig.get_path('purelib')} > {site.as_posix().replace(str(image), inside)}/installed.pth",
        f"{sys.executable} -m pip --python {python} install --quiet --no-deps --no-build-isolation --no-index {source}",
    ]
    run("unshare", "--mount", "sh", "-c", " && ".join(build_here))
    for name, destination in absolute:
        _copy(
            ROOT / name, image / Path(destination.replace("python3.11", site.parent.name)).relative_to(inside)
        )


def _copy(source: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    copy: Callable[..., object] = shutil.copytree if source.is_dir() else shutil.copy
    copy(source, destination)


class Container:
    """A running one."""

    def __init__(self, process: subprocess.Popen[bytes], environment: Mapping[str, str], log: Path) -> None:
        self._process = process
        self._environment = environment
        self._log = log
        self._children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        until(lambda: self._children.read_text().strip() or process.poll() is not None)
        assert process.poll() is None, self.said
        self.pid = int(self._children.read_text().split()[0])
        self._inside = ThreadPoolExecutor(1, initializer=self._enter_network)

    def _enter_network(self) -> None:
        """This thread only."""
        with Path(f"/proc/{self.pid}/ns/net").open() as namespace:
            assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET) == 0

    def inside(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call it where the container's loopback is."""
        return self._inside.submit(function, *args, **options).result()

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """As `docker exec` or a probe does."""
        enter = f"nsenter --target {self.pid} --mount --net --pid --root {_UNPRIVILEGED} env -i".split()
        variables = [f"{name}={value}" for name, value in self._environment.items()]
        return subprocess.run([*enter, *variables, *command], capture_output=True, text=True)  # noqa: S603, PLW1510

    def stop(self) -> int:
        """SIGTERM, then its exit code once it has ended by itself."""
        os.kill(self.pid, signal.SIGTERM)
        return self._process.wait(120)

    @property
    def said(self) -> str:
        return self._log.read_text()

    def status(self, name: str) -> str:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(line for line in lines if line.startswith(f"{name}:")).split(":", 1)[1].strip()


@contextlib.contextmanager
def started(
    folder: Path, image: Path, mounts: Mapping[str, tuple[Path, str]], environment: Mapping[str, str]
) -> Iterator[Container]:
    """`mounts`: where -> what, and ro or rw. `environment` over the image's."""
    stage: Stage = stages(DEPLOY / "docker" / "Dockerfile")[-1]
    variables = stage.environment | {"HOME": "/var/lib/interlock"} | dict(environment)
    variables["PATH"] = variables["PATH"].replace("$PATH", "/usr/bin:/bin")
    # the Python of this machine and its packages stand for those of the image
    of_python = {sys.base_prefix, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    everything = (
        {"/opt/interlock": (image, "ro")} | dict(mounts) | {path: (Path(path), "ro") for path in of_python}
    )
    given = " ".join(f"{name}={value}" for name, value in variables.items())
    script = [
        _ROOT_FOLDER,
        *(f"into {what} {where} {how}" for where, (what, how) in everything.items()),
        'mount -o remount,ro "$NEW_ROOT"',
        f'{sys.executable} -c "{_LOOPBACK_UP}"',
        f"exec chroot . {_UNPRIVILEGED} env -i --chdir={stage.the('WORKDIR')} {given} {' '.join(stage.command)}",
    ]
    new_root = folder / "root"
    new_root.mkdir()
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: S603
            [*_UNSHARE, "sh", "-c", "\n".join(script)],
            env={"NEW_ROOT": str(new_root), "PATH": os.environ["PATH"]},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Container(process, variables, log)
    finally:
        process.kill()
        process.wait()
