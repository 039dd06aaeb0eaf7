"""Sparse autoencoders of other projects, read feature by feature. A new format is a file and a line here."""

from collections.abc import Callable, Mapping
from pathlib import Path

from monitors.sae.base import SparseAutoencoder
from monitors.sae.saelens import read_saelens

SAE_FORMATS: Mapping[str, Callable[[Path], SparseAutoencoder]] = {"saelens": read_saelens}
