"""EleutherAI sparsify: `layers.<L>/cfg.json` and `sae.safetensors`. TopK or groupmax of ReLU((x - b_dec) W_enc + b).

b_dec is always subtracted, whatever `normalize_decoder` says: sparsify does so in every version. (SAELens' loader does not
when normalize_decoder is true, which is its default; the features then differ by b_dec W_enc.)
"""

import re
from pathlib import Path

from pydantic import Field

from monitors.base import Scale
from monitors.sae.base import Among, SaeError, Selection, SparseAutoencoder
from monitors.sae.files import (
    Config,
    fit,
    read_config,
    read_safetensors,
    told_hook_point,
    unknown_hook_point,
)
from monitors.types import HookPoint

_SHAPES = {
    "encoder.weight": ("d_sae", "d_model"),
    "encoder.bias": ("d_sae",),
    "W_dec": ("d_sae", "d_model"),
    "b_dec": ("d_model",),
}


class _Config(Config):
    d_in: int = Field(gt=0)
    k: int = Field(gt=0)
    activation: Among = Among.ALL  # older versions have topk only, and don't say so
    num_latents: int = 0
    expansion_factor: int = 0
    transcode: bool = False
    skip_connection: bool = False


def read_sparsify(folder: Path) -> SparseAutoencoder:
    """Read a folder. Raises SaeError; transcoders are refused."""
    path = folder / "cfg.json"
    config = read_config(path, _Config, "sparsify")
    if config.transcode or config.skip_connection:
        raise SaeError(
            f"{path}: a transcoder is refused: it reads the MLP's input, which is not a hook point here"
        )
    point = told_hook_point(folder) or _by_name(folder)
    weights = folder / "sae.safetensors"
    sizes = {"d_model": config.d_in}
    if num_features := config.num_latents or config.d_in * config.expansion_factor:
        sizes["d_sae"] = num_features
    w = fit(weights, read_safetensors(weights), _SHAPES, sizes=sizes)
    if config.activation is Among.GROUP and len(w["W_dec"]) % config.k:
        raise SaeError(f"{path}: {len(w['W_dec'])} features can't be cut into k = {config.k} groups")
    return SparseAutoencoder(
        hook_point=point,
        W_enc=w["encoder.weight"].T,
        W_dec=w["W_dec"],
        b_enc=w["encoder.bias"],
        b_subtracted=w["b_dec"],
        scale=Scale.NONE,
        rectifiers=None,
        b_dec=w["b_dec"],
        selection=Selection(config.activation, config.k),
        published_l0=float(config.k),
    )


def _by_name(folder: Path) -> HookPoint:
    if match := re.fullmatch(r"(?:.*\.)?(?:layers|h)\.(\d+)", folder.name):
        return HookPoint(int(match[1]))
    if re.search(r"layers\.\d+\.|embed", folder.name):
        raise SaeError(
            f"{folder}: {folder.name!r} is not a whole block's output, so it is not a hook point here"
        )
    raise unknown_hook_point(folder)
