"""What a folder of artifacts holds, for checks of policies without a server. Slow to import: the artifacts need torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from guard.types import MonitorInfo, VectorInfo
from monitors.artifacts import ArtifactError, load_folder
from monitors.artifacts.files import (
    MONITOR_FILE,
    VECTOR_FILE,
    ArtifactFile,
    MonitorFile,
    VectorFile,
    read_json,
)
from server.policy_store import describe_monitors, describe_vectors

_ANY_LAYER = 1 << 20  # whether a layer exists is for the server to say, which has the model


@dataclass(frozen=True, slots=True)
class Installed:
    monitors: Mapping[str, MonitorInfo]
    vectors: Mapping[str, VectorInfo]


def read_installed(folder: Path) -> Installed:
    """Read and verify all artifacts of a folder. They have to be for one model; for which is not asked. Raises ArtifactError."""
    first = _first(folder)
    if first is None:
        return Installed({}, {})
    found = load_folder(
        folder, fingerprint=first.model.fingerprint, d_model=first.model.d_model, num_layers=_ANY_LAYER
    )
    return Installed(describe_monitors(found.monitors), describe_vectors(found.vectors.values()))


def _first(folder: Path) -> ArtifactFile | None:
    if not folder.is_dir():
        raise ArtifactError("no such folder; give the one whose sub-folders are the monitors")
    for name, schema in ((MONITOR_FILE, MonitorFile), (VECTOR_FILE, VectorFile)):
        for path in sorted(folder.glob(f"*/{name}")):
            return read_json(path, folder, schema)
    return None
