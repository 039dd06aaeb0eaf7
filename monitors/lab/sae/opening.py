"""Opens an SAE's folder for the lab, with the same checks as the server's."""

from pathlib import Path

from monitors.artifacts.files import check_sae_files, hash_files
from monitors.sae import SAE_FORMATS
from monitors.sae.base import SaeError, SparseAutoencoder


def open_sae(folder: Path, name: str) -> tuple[SparseAutoencoder, str]:
    """The SAE and the hash of its files. Raises SaeError or ArtifactError."""
    if name not in SAE_FORMATS:
        raise SaeError(f"unknown SAE format {name!r}; known: {', '.join(SAE_FORMATS)}")
    sha256 = hash_files(folder)
    check_sae_files(folder, folder, sha256)
    return SAE_FORMATS[name](folder), sha256
