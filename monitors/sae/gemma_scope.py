"""Gemma Scope: `params.npz` (1, for Gemma 2) and `config.json` with `params.safetensors` (2, for Gemma 3). JumpReLU.

The first release says where it reads only by its path: `gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`.
"""

import re
from pathlib import Path

from monitors.base import Scale
from monitors.sae.base import Rectifiers, SaeError, SparseAutoencoder
from monitors.sae.files import (
    Config,
    fit,
    parse_module,
    read_config,
    read_npz,
    read_safetensors,
    told_hook_point,
    unknown_hook_point,
)
from monitors.types import HookPoint

_V1 = {
    "W_enc": ("d_model", "d_sae"),
    "W_dec": ("d_sae", "d_model"),
    "b_enc": ("d_sae",),
    "b_dec": ("d_model",),
    "threshold": ("d_sae",),
}
_V2 = {name.replace("W_", "w_"): shape for name, shape in _V1.items()}
_REPOSITORY = re.compile(r"gemma-scope-[\w.]+-(?:pt|it)-(?P<site>res|mlp|att|transcoders)")
_NOT_A_BLOCK = {
    "mlp": "it reads the MLP's output",
    "att": "it reads attention heads",
    "transcoders": "it is a transcoder and reads the MLP's input",
}


def read_gemma_scope(folder: Path) -> SparseAutoencoder:
    """Read a folder of the first release. Raises SaeError."""
    point = told_hook_point(folder) or _by_path(folder)
    path = folder / "params.npz"
    w = fit(path, read_npz(path), _V1)
    l0 = re.fullmatch(r"average_l0_(\d+)", folder.name)
    return SparseAutoencoder(
        hook_point=point,
        W_enc=w["W_enc"],
        W_dec=w["W_dec"],
        b_enc=w["b_enc"],
        b_subtracted=None,
        scale=Scale.NONE,
        rectifiers=Rectifiers.jump(w["threshold"]),
        b_dec=w["b_dec"],
        published_l0=float(l0[1]) if l0 else None,
    )


def _by_path(folder: Path) -> HookPoint:
    parts = folder.absolute().parts
    if "embedding" in parts:
        raise SaeError(f"{folder}: reads the embedding, which is not a hook point here")
    sites = [match["site"] for part in parts if (match := _REPOSITORY.fullmatch(part))]
    layers = [int(match[1]) for part in parts if (match := re.fullmatch(r"layer_(\d+)", part))]
    if sites and sites[-1] in _NOT_A_BLOCK:
        raise SaeError(f"{folder}: {_NOT_A_BLOCK[sites[-1]]}, which is not a hook point here")
    if not sites or not layers:
        raise unknown_hook_point(folder)
    return HookPoint(layers[-1])


class _Config2(Config):
    architecture: str
    hf_hook_point_in: str
    hf_hook_point_out: str | None = None
    affine_connection: bool = False
    l0: float | None = None


def read_gemma_scope_2(folder: Path) -> SparseAutoencoder:
    """Read a folder of the second release. Raises SaeError; transcoders are refused."""
    path = folder / "config.json"
    config = read_config(path, _Config2, "Gemma Scope 2")
    if config.architecture != "jump_relu":
        raise SaeError(f"{path}: unknown architecture {config.architecture!r}; known: jump_relu")
    if config.affine_connection or config.hf_hook_point_out not in {None, config.hf_hook_point_in}:
        raise SaeError(
            f"{path}: a transcoder from {config.hf_hook_point_in!r} to {config.hf_hook_point_out!r} is refused: "
            "it reads the MLP's input, which is not a hook point here"
        )
    point = parse_module(config.hf_hook_point_in, path)
    weights = folder / "params.safetensors"
    w = fit(weights, read_safetensors(weights), _V2)
    return SparseAutoencoder(
        hook_point=point,
        W_enc=w["w_enc"],
        W_dec=w["w_dec"],
        b_enc=w["b_enc"],
        b_subtracted=None,
        scale=Scale.NONE,
        rectifiers=Rectifiers.jump(w["threshold"]),
        b_dec=w["b_dec"],
        published_l0=config.l0,
    )
