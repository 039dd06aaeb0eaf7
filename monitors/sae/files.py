"""How the files of SAEs are read: JSON by a schema, tensors by name and shape, npz without pickle."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from monitors.sae.base import SaeError
from monitors.types import HookKind, HookPoint

HOOK_FILE = "hook_point.json"
_MAX_NPZ_BYTES = 1 << 35

Shapes = Mapping[str, tuple[str, ...]]
"""Tensor name -> its shape in named sizes; a name is the same size wherever it stands."""


class Config(BaseModel):
    """What decides the formula. The original projects write more keys, which don't."""

    model_config = ConfigDict(frozen=True)


class _HookFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    hook_point: str


_Schema = TypeVar("_Schema", bound=BaseModel)


def read_config(path: Path, schema: type[_Schema], project: str) -> _Schema:
    """Read a JSON file. Raises SaeError."""
    try:
        return schema.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SaeError(f"{path}: not a config of {project}: {error}") from error


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file, memory-mapped. Raises SaeError."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise SaeError(f"{path}: not a safetensors file: {error}") from error


def read_npz(path: Path) -> dict[str, Tensor]:
    """Every array of a file that holds numbers; objects (pickles) are refused. Raises SaeError."""
    try:
        _check_unpacked_size(path)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise SaeError(f"{path}: not an npz file of numbers: {error}") from error


def _check_unpacked_size(path: Path) -> None:
    """A small file may unpack to any size. Raises ValueError."""
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > _MAX_NPZ_BYTES:
        raise ValueError(f"{size:,} bytes when unpacked; at most {_MAX_NPZ_BYTES:,} are read")


def fit(
    path: Path,
    tensors: Mapping[str, Tensor],
    needed: Shapes,
    *,
    optional: Shapes | None = None,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Check that these tensors are there, no others, of these shapes, and floats. Raises SaeError."""
    allowed = {**needed, **(optional or {})}
    if not needed.keys() <= tensors.keys() <= allowed.keys():
        found = ", ".join(sorted(tensors))
        raise SaeError(f"{path}: needs {', '.join(sorted(needed))}; found {found}")
    known = dict(sizes or {})
    for name, tensor in sorted(tensors.items()):
        shape = tuple(known.get(size, size) for size in allowed[name])
        fits = len(shape) == tensor.ndim and all(
            isinstance(want, str) or want == have for want, have in zip(shape, tensor.shape, strict=True)
        )
        if not fits or not tensor.is_floating_point():
            raise SaeError(
                f"{path}: tensor {name!r} is {tensor.dtype} {list(tensor.shape)}; needs floats [{', '.join(map(str, shape))}]"
            )
        known |= dict(zip(allowed[name], tensor.shape, strict=True))
    return dict(tensors)


def parse_hook_point(text: str, where: Path) -> HookPoint:
    """A hook point in TransformerLens' spelling. Raises SaeError."""
    try:
        return HookPoint.parse(text)
    except ValueError as error:
        raise SaeError(f"{where}: {error}") from error


_HF_LAYER = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)(?:\.(output|input))?")


def parse_module(text: str, where: Path) -> HookPoint:
    """A hook point by its Hugging Face module, such as `model.layers.12.output`. Raises SaeError."""
    match = _HF_LAYER.fullmatch(text)
    if match is None:
        raise SaeError(
            f"{where}: reads {text!r}, which is not a hook point here: only the output or input of whole blocks is"
        )
    return HookPoint(int(match[1]), HookKind.RESID_PRE if match[2] == "input" else HookKind.RESID_POST)


def told_hook_point(folder: Path) -> HookPoint | None:
    """What `hook_point.json` says, for formats whose own files don't: {"hook_point": "blocks.12.hook_resid_post"}."""
    path = folder / HOOK_FILE
    if not path.exists():
        return None
    return parse_hook_point(read_config(path, _HookFile, "Interlock").hook_point, path)


def unknown_hook_point(folder: Path) -> SaeError:
    """The error for a folder from which the hook point can't be known."""
    return SaeError(
        f"{folder}: its files don't say where in the model it reads; "
        f'write {HOOK_FILE} beside them: {{"hook_point": "blocks.<layer>.hook_resid_post"}}'
    )
