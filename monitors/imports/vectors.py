"""From a file of another project to a steering vector, whatever the file."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from monitors.imports.base import ImportFileError
from monitors.imports.gguf import read_gguf
from monitors.imports.layers import read_layers
from monitors.imports.svec import read_svec
from monitors.steering import Direction, SteeringVector
from monitors.types import HookPoint


def read_directions(path: Path) -> Mapping[int, Tensor]:
    """Directions by 0-based block, at its output. Raises ImportFileError or OSError."""
    match path.suffix.lower():
        case ".gguf":
            return read_gguf(path).directions
        case ".svec":
            return read_svec(path)
        case ".safetensors":
            return read_layers(path)
        case ".pt" | ".pth" | ".pkl" | ".pickle" | ".bin" | ".joblib":
            raise ImportFileError(
                f"{path}: pickle can execute code; save the vectors as safetensors, layer.<n> for each"
            )
        case _:
            raise ImportFileError(f"{path}: can't tell its format; known: .gguf, .svec, .safetensors")


def import_vector(path: Path, *, name: str, d_model: int, num_layers: int) -> SteeringVector:
    """A vector that is added, for a model of this size. It has no causal evidence yet.

    Raises ImportFileError for what does not fit the model, ValueError for a vector of zeros.
    """
    directions = read_directions(path)
    check_fits(path, directions, d_model=d_model, num_layers=num_layers)
    return SteeringVector(
        name, "add", tuple(Direction(HookPoint(layer), directions[layer]) for layer in sorted(directions))
    )


def check_fits(path: Path, directions: Mapping[int, Tensor], *, d_model: int, num_layers: int) -> None:
    """Raise ImportFileError unless a file's directions are for a model of this size, and finite."""
    if not directions:
        raise ImportFileError(f"{path}: holds no directions")
    for layer, vector in directions.items():
        if layer >= num_layers:
            raise ImportFileError(
                f"{path}: has layer {layer}; this model has layers 0 to {num_layers - 1}: it is for another model"
            )
        if tuple(vector.shape) != (d_model,):
            raise ImportFileError(
                f"{path}: layer {layer} has shape {list(vector.shape)}; this model's d_model is {d_model}"
            )
        if not vector.isfinite().all():
            raise ImportFileError(f"{path}: layer {layer} holds NaN or infinity")
