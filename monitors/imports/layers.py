"""steering_vectors, which has no format of its own: safetensors with `layer.<n>` [d_model], of its layer type decoder_block."""

import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from monitors.imports.base import ImportFileError


def read_layers(path: Path) -> dict[int, Tensor]:
    """Directions by 0-based block, at its output, [d_model] float32. Raises ImportFileError."""
    found: dict[int, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                match = re.fullmatch(r"layer\.(\d{1,4})", name)
                if match is None:
                    raise ImportFileError(f"{path}: tensor {name!r}; needs layer.<number> only")
                found[int(match[1])] = file.get_tensor(name).float()
    except SafetensorError as error:
        raise ImportFileError(f"{path}: not a safetensors file: {error}") from error
    return found
