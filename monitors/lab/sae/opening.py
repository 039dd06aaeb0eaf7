"""Opens an SAE's folder for the lab, with the same checks as the server's."""

from pathlib import Path

import torch
from torch import Tensor

from monitors.artifacts.files import check_sae_files, hash_files
from monitors.sae import SAE_FORMATS
from monitors.sae.base import SaeError, SparseAutoencoder

_ROWS_AT_ONCE = 4096


def open_sae(folder: Path, name: str) -> tuple[SparseAutoencoder, str]:
    """The SAE and the hash of its files. Raises SaeError or ArtifactError."""
    if name not in SAE_FORMATS:
        raise SaeError(f"unknown SAE format {name!r}; known: {', '.join(SAE_FORMATS)}")
    sha256 = hash_files(folder)
    check_sae_files(folder, folder, sha256)
    sae = SAE_FORMATS[name](folder)
    _check_finite(folder, sae)
    return sae, sha256


def _check_finite(folder: Path, sae: SparseAutoencoder) -> None:
    """Raise SaeError where a number isn't: it would spread into every feature, or silence one."""
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        tensor: Tensor | None = getattr(sae, name)
        if tensor is not None and not all(
            part.isfinite().all() for part in torch.split(tensor, _ROWS_AT_ONCE)
        ):
            raise SaeError(f"{folder}: {name} holds NaN or infinity; get its files again, or train it again")
