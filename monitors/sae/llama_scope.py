"""Llama Scope (`hyperparams.json`, `checkpoints/final.safetensors`) and its R1 form (`config.json`, `sae_weights.safetensors`).

x is scaled by c = sqrt(d) / (mean norm over the training set), folded here: p = (c x) W_enc + b_enc is x (c W_enc) + b_enc,
and the reconstruction is divided by c. Thresholds apply to p, so c does not touch them (SAELens multiplies them by c).
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from monitors.base import Scale
from monitors.sae.base import Rectifiers, SaeError, SparseAutoencoder
from monitors.sae.files import Config, fit, parse_hook_point, read_config, read_safetensors

_SHAPES = {
    "encoder.weight": ("d_sae", "d_model"),
    "encoder.bias": ("d_sae",),
    "decoder.weight": ("d_model", "d_sae"),
    "decoder.bias": ("d_model",),
}
_LOG_THRESHOLD = "log_jumprelu_threshold"


class _Config(Config):
    hook_point_in: str
    hook_point_out: str | None = None
    act_fn: str = "jumprelu"
    jump_relu_threshold: float | None = None
    dataset_average_activation_norm: Mapping[str, float] | None = None  # by "in" and "out", or by hook point
    norm_activation: str = "dataset-wise"
    apply_decoder_bias_to_pre_encoder: bool = False


def read_llama_scope(folder: Path) -> SparseAutoencoder:
    """Read a folder of the first release. Raises SaeError."""
    path = folder / "hyperparams.json"
    config = read_config(path, _Config, "Llama Scope")
    if config.jump_relu_threshold is None:
        raise SaeError(f"{path}: needs jump_relu_threshold")
    weights = folder / "checkpoints" / "final.safetensors"
    w = fit(weights, read_safetensors(weights), _SHAPES)
    threshold = torch.full((len(w["encoder.bias"]),), config.jump_relu_threshold, dtype=torch.float64)
    return _autoencoder(path, config, w, threshold)


def read_llama_scope_r1(folder: Path) -> SparseAutoencoder:
    """Read a folder of the R1 release, which has a threshold per feature. Raises SaeError."""
    path = folder / "config.json"
    config = read_config(path, _Config, "Llama Scope R1")
    weights = folder / "sae_weights.safetensors"
    w = fit(weights, read_safetensors(weights), {**_SHAPES, _LOG_THRESHOLD: ("d_sae",)})
    return _autoencoder(path, config, w, w[_LOG_THRESHOLD].double().exp())


def _autoencoder(
    path: Path, config: _Config, w: Mapping[str, Tensor], threshold: Tensor
) -> SparseAutoencoder:
    if config.hook_point_out not in {None, config.hook_point_in}:
        raise SaeError(
            f"{path}: a transcoder from {config.hook_point_in!r} to {config.hook_point_out!r} is refused"
        )
    if config.act_fn.lower() != "jumprelu":
        raise SaeError(f"{path}: unknown act_fn {config.act_fn!r}; known: jumprelu")
    c = _input_scale(path, config, d_model=len(w["decoder.bias"]))
    decoder = w["decoder.bias"].float()
    return SparseAutoencoder(
        hook_point=parse_hook_point(config.hook_point_in, path),
        W_enc=w["encoder.weight"].float().T * c,
        W_dec=w["decoder.weight"].float().T / c,
        b_enc=_folded_bias(config, w),
        b_subtracted=None,
        scale=Scale.NONE,
        rectifiers=Rectifiers.jump(threshold),
        b_dec=decoder / c,
    )


def _folded_bias(config: _Config, w: Mapping[str, Tensor]) -> Tensor:
    bias = w["encoder.bias"].double()
    if config.apply_decoder_bias_to_pre_encoder:
        bias = bias - w["encoder.weight"].double() @ w["decoder.bias"].double()
    return bias


def _input_scale(path: Path, config: _Config, *, d_model: int) -> float:
    if config.norm_activation == "inference":  # folded already
        return 1.0
    if config.norm_activation != "dataset-wise":
        raise SaeError(
            f"{path}: unknown norm_activation {config.norm_activation!r}; known: dataset-wise, inference"
        )
    norms = config.dataset_average_activation_norm or {}
    norm = norms.get("in", norms.get(config.hook_point_in))
    if norm is None or not (norm > 0 and math.isfinite(norm)):
        raise SaeError(f"{path}: dataset_average_activation_norm.in is {norm}; needs a number above 0")
    return math.sqrt(d_model) / norm
