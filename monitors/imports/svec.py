"""IBM's activation-steering (CAST): `.svec`, JSON with a direction per layer. Behaviours and conditions look the same.

Layers are 0-based blocks, read and written at their output.
"""

from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from monitors.imports.base import ImportFileError

_MAX_BYTES = 1 << 28


class _Svec(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    model_type: str
    directions: dict[int, list[float]] = Field(min_length=1)


def read_svec(path: Path) -> dict[int, Tensor]:
    """Directions by 0-based block, [d_model] float32. Raises ImportFileError."""
    if path.stat().st_size > _MAX_BYTES:
        raise ImportFileError(f"{path}: {path.stat().st_size:,} bytes; at most {_MAX_BYTES:,} are read")
    try:
        file = _Svec.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise ImportFileError(f"{path}: not a .svec of activation-steering: {error}") from error
    if any(layer < 0 for layer in file.directions):
        raise ImportFileError(f"{path}: layers must be 0 or more")
    return {layer: torch.tensor(values, dtype=torch.float32) for layer, values in file.directions.items()}
