"""Checkers that other projects make. Where one is not installed, its tests are skipped and say so."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
_WHERE = os.pathsep.join(
    [str(Path(sys.executable).parent), str(ROOT / "build/tools/usr/bin"), os.environ["PATH"]]
)


def tool(name: str, source: str) -> str:
    """Its path. `source` says where it comes from."""
    found = shutil.which(name, path=_WHERE)
    if found is None:
        pytest.skip(f"no {name}: {source}")
    return found


def run(*command: object, **options: Any) -> str:
    """What it says; fails with that if it is not content."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)  # noqa: S603, PLW1510
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"{command[0]}: {done.returncode}\n{said}"
    return said


def documents(text: str | Path) -> list[dict[str, Any]]:
    """Of a YAML file or text."""
    return [document for document in YAML(typ="safe", pure=True).load_all(text) if document is not None]
