"""A strict reader of GGUF control vectors (repeng, llama.cpp): a few texts and numbers, and float32 vectors `direction.<N>`.

Layout (ggml `docs/gguf.md`, versions 2 and 3, little-endian): magic, version u32, number of tensors u64, number of keys
u64; keys (name, type u32, value); tensors (name, number of dimensions u32, sizes u64, type u32, offset u64); padding to the
alignment; data. A model in this format is refused, as is everything that a control vector has no need of.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from monitors.imports.base import ImportFileError

_MAX_BYTES = 1 << 28
_MAX_NAMES, _MAX_TEXT = 1024, 1 << 16
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_TEXT, _F32 = 8, 0


@dataclass(frozen=True, slots=True)
class ControlVector:
    """What the file holds. Directions by 0-based block, at its output; never block 0, as in llama.cpp."""

    model_hint: str
    directions: dict[int, Tensor]  # [d_model] float32


class _Bytes:
    """Reads on from a position; running over the end is an error, not an empty value."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self.position:
            raise ImportFileError("it ends too early")
        self.position += size
        return self._data[self.position - size : self.position]

    def number(self, form: str) -> int | float | bool:
        value: int | float | bool = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def count(self, form: str, limit: int, what: str) -> int:
        value = int(self.number(form))
        if value > limit:
            raise ImportFileError(f"{value:,} {what}; at most {limit:,} are read")
        return value

    def text(self) -> str:
        return self.take(self.count("<Q", _MAX_TEXT, "bytes of text")).decode("utf-8")


def read_gguf(path: Path) -> ControlVector:
    """Read a control vector. Raises ImportFileError for anything else, OSError for a file that can't be opened."""
    if path.stat().st_size > _MAX_BYTES:
        raise ImportFileError(f"{path}: {path.stat().st_size:,} bytes; at most {_MAX_BYTES:,} are read")
    data = path.read_bytes()
    try:
        return _read(data)
    except (ImportFileError, UnicodeDecodeError) as error:
        raise ImportFileError(f"{path}: not a GGUF control vector: {error}") from error


def _read(data: bytes) -> ControlVector:
    source = _Bytes(data)
    if source.take(4) != b"GGUF":
        raise ImportFileError("it does not begin with GGUF")
    if (version := source.number("<I")) not in {2, 3}:
        raise ImportFileError(f"version {version}; known: 2, 3")
    num_tensors = source.count("<Q", _MAX_NAMES, "tensors")
    keys = _keys(source, source.count("<Q", _MAX_NAMES, "keys"))
    if keys.get("general.architecture") != "controlvector":
        raise ImportFileError(
            f"general.architecture is {keys.get('general.architecture')!r}, not 'controlvector'"
        )
    shapes = [_tensor(source) for _ in range(num_tensors)]
    alignment = keys.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= _MAX_TEXT:
        raise ImportFileError(f"general.alignment is {alignment!r}")
    start = -(-source.position // alignment) * alignment
    directions: dict[int, Tensor] = {}
    for layer, size, offset in shapes:
        end = start + offset + 4 * size
        if layer in directions or end > len(data):
            raise ImportFileError(f"direction.{layer} stands twice, or ends beyond the file")
        directions[layer] = torch.frombuffer(bytearray(data[start + offset : end]), dtype=torch.float32)
    return ControlVector(str(keys.get("controlvector.model_hint", "")), directions)


def _keys(source: _Bytes, num: int) -> dict[str, object]:
    found: dict[str, object] = {}
    for _ in range(num):
        name, kind = source.text(), int(source.number("<I"))
        if kind == _TEXT:
            found[name] = source.text()
        elif kind in _SCALARS:
            found[name] = source.number(_SCALARS[kind])
        else:
            raise ImportFileError(
                f"key {name!r} has type {kind}; a control vector has texts and numbers only"
            )
    return found


def _tensor(source: _Bytes) -> tuple[int, int, int]:
    """Layer, number of values, offset."""
    name = source.text()
    prefix, _, layer = name.rpartition(".")
    if prefix != "direction" or not layer.isascii() or not layer.isdecimal():
        raise ImportFileError(f"tensor {name!r}; a control vector has direction.<layer> only")
    if int(layer) == 0:
        raise ImportFileError("direction.0: layer 0 is refused, as by llama.cpp")
    num_dimensions = int(source.number("<I"))
    if num_dimensions != 1:
        raise ImportFileError(f"tensor {name!r} has {num_dimensions} dimensions; needs 1")
    size = source.count("<Q", _MAX_BYTES // 4, "values")
    if not size:
        raise ImportFileError(f"tensor {name!r} has no values")
    kind = int(source.number("<I"))
    if kind != _F32:
        raise ImportFileError(f"tensor {name!r} has type {kind}; needs 0 (float32)")
    return int(layer), size, int(source.number("<Q"))
