"""Writes the images' locked requirements from pyproject.toml and deploy/constraints.txt: `make lock` (needs uv).

    requirements.txt   what the server needs, but for torch
    torch-cuda.txt     torch as PyPI has it, with CUDA's libraries
    torch-cpu.txt      by hand: PyTorch's own index, whose builds for a CPU are a tenth of the size

Everything is installed with --require-hashes --no-deps, so an image holds what is named here and nothing else.
"""

import re
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
_OF_CUDA = re.compile(r"torch|triton|nvidia-|cuda-")
_HEAD = "# Written by `make lock`; don't edit.\n"


def torch_version() -> str:
    """The one that torch-cpu.txt names."""
    return re.search(r"^torch==([\d.]+)\+cpu", (HERE / "torch-cpu.txt").read_text(), re.MULTILINE)[1]


def resolved() -> list[str]:
    """One entry for each package: `name==version` and its hashes."""
    command = [
        "uv",
        "pip",
        "compile",
        "pyproject.toml",
        "--constraints",
        "deploy/constraints.txt",
        "--constraints",
        "-",
    ]
    options = [
        "--extra",
        "redis",
        "--extra",
        "otel",
        "--python-version",
        "3.11.14",
        "--python-platform",
        "x86_64-manylinux_2_28",
    ]
    shape = ["--generate-hashes", "--no-annotate", "--no-header", "--quiet"]
    given = f"torch=={torch_version()}\n"
    out = subprocess.run(  # noqa: S603
        [*command, *options, *shape], cwd=ROOT, input=given, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    return re.findall(r"^\S.*?(?=^\S|\Z)", out, re.MULTILINE | re.DOTALL)


def main() -> None:
    entries = resolved()
    of_cuda = [entry for entry in entries if _OF_CUDA.match(entry)]
    rest = [entry for entry in entries if not _OF_CUDA.match(entry)]
    (HERE / "requirements.txt").write_text(_HEAD + "".join(rest))
    (HERE / "torch-cuda.txt").write_text(_HEAD + "".join(of_cuda))


if __name__ == "__main__":
    main()
