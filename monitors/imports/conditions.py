"""From a condition of IBM's activation-steering (CAST) to a monitor."""

from pathlib import Path
from typing import Literal

from monitors.aggregate import AggregatorSpec
from monitors.base import Monitor
from monitors.condition import Condition, MeanCondition
from monitors.imports.base import ImportFileError
from monitors.imports.svec import read_svec
from monitors.imports.vectors import check_fits
from monitors.types import HookKind, HookPoint

Comparison = Literal["larger", "smaller"]
"""What the threshold is where the condition is met, in the words of activation-steering: `larger` than the similarity."""


def import_condition(
    path: Path,
    *,
    name: str,
    layer: int,
    pooling: Literal["mean", "last"] = "mean",
    threshold_is: Comparison = "smaller",
    d_model: int,
    num_layers: int,
) -> Monitor:
    """A monitor of the similarity, high where the condition is met. It is not calibrated yet.

    activation-steering makes the direction of a layer at its block's output, but compares it with the block's input: so does
    the monitor, and CAST's own thresholds hold (with the other sign for `larger`). Raises ImportFileError for what does not
    fit the model, ValueError for a direction of zeros.
    """
    if path.suffix.lower() != ".svec":
        raise ImportFileError(f"{path}: a condition is a .svec of activation-steering")
    directions = read_svec(path)
    check_fits(path, directions, d_model=d_model, num_layers=num_layers)
    if layer not in directions:
        known = ", ".join(map(str, sorted(directions)))
        raise ImportFileError(f"{path}: has no layer {layer}; it has {known}")
    kind = MeanCondition if pooling == "mean" else Condition
    point = HookPoint(layer, HookKind.RESID_PRE)
    condition = kind(point, directions[layer], -1 if threshold_is == "larger" else 1)
    return Monitor(name, condition, AggregatorSpec(pooling))
