"""Monitors and steering vectors on disk: a folder of one JSON file and safetensors. Never pickle.

Format reference: docs/monitors.md.
"""

from monitors.artifacts.files import ArtifactError, SaeReference
from monitors.artifacts.load import ModelIdentity, MonitorSet, load_folder, load_monitor, load_vector
from monitors.artifacts.save import save_monitor, save_vector

__all__ = [
    "ArtifactError",
    "ModelIdentity",
    "MonitorSet",
    "SaeReference",
    "load_folder",
    "load_monitor",
    "load_vector",
    "save_monitor",
    "save_vector",
]
