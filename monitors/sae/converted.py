"""SAEs that are published as bare pickles: OpenAI, Goodfire, qresearch, Qwen Scope. `interlock sae convert` writes the folder:
`config.json` (hook_point, and what the formula needs) and `sae.safetensors` with the original tensor names.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from monitors.base import Scale
from monitors.sae.base import Among, SaeError, Selection, SparseAutoencoder
from monitors.sae.files import Shapes, fit, parse_hook_point, read_config, read_safetensors

CONFIG, WEIGHTS = "config.json", "sae.safetensors"
_F, _D = ("d_sae",), ("d_model",)
_E, _R = ("d_sae", "d_model"), ("d_model", "d_sae")
OPENAI: Shapes = {"encoder.weight": _E, "decoder.weight": _R, "pre_bias": _D, "latent_bias": _F}
GOODFIRE: Shapes = {
    "encoder_linear.weight": _E,
    "encoder_linear.bias": _F,
    "decoder_linear.weight": _R,
    "decoder_linear.bias": _D,
}
QRESEARCH: Shapes = {"encoder.weight": _E, "encoder.bias": _F, "decoder.weight": _R, "decoder.bias": _D}
QWEN_SCOPE: Shapes = {"W_enc": _E, "W_dec": _R, "b_enc": _F, "b_dec": _D}


class ConvertedFile(BaseModel):
    """config.json of a converted SAE."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    hook_point: str
    activation: Literal["ReLU", "TopK"] = "ReLU"
    k: int | None = Field(default=None, gt=0)  # of TopK


def read_openai(folder: Path) -> SparseAutoencoder:
    """ReLU (v1, v4), or TopK behind a layer norm (v5): the original normalises if and only if it is TopK."""
    config = _config(folder)
    w = fit(folder / WEIGHTS, read_safetensors(folder / WEIGHTS), OPENAI)
    return SparseAutoencoder(
        hook_point=parse_hook_point(config.hook_point, folder / CONFIG),
        W_enc=w["encoder.weight"].T,
        W_dec=w["decoder.weight"].T,
        b_enc=w["latent_bias"],
        b_subtracted=w["pre_bias"],
        scale=Scale.LAYER_NORM if config.activation == "TopK" else Scale.NONE,
        rectifiers=None,
        b_dec=w["pre_bias"],
        selection=_selection(config),
    )


def read_goodfire(folder: Path) -> SparseAutoencoder:
    """ReLU; the decoder's bias is not subtracted."""
    return _plain(folder, GOODFIRE, "encoder_linear", "decoder_linear")


def read_qresearch(folder: Path) -> SparseAutoencoder:
    """ReLU; the decoder's bias is not subtracted."""
    return _plain(folder, QRESEARCH, "encoder", "decoder")


def read_qwen_scope(folder: Path) -> SparseAutoencoder:
    """TopK; b_dec is not subtracted. k stands in the name of its repository only."""
    config = _config(folder)
    if config.activation != "TopK":
        raise SaeError(f"{folder / CONFIG}: Qwen Scope is TopK; convert it with --k")
    w = fit(folder / WEIGHTS, read_safetensors(folder / WEIGHTS), QWEN_SCOPE)
    return SparseAutoencoder(
        hook_point=parse_hook_point(config.hook_point, folder / CONFIG),
        W_enc=w["W_enc"].T,
        W_dec=w["W_dec"].T,
        b_enc=w["b_enc"],
        b_subtracted=None,
        scale=Scale.NONE,
        rectifiers=None,
        b_dec=w["b_dec"],
        selection=_selection(config),
    )


def _plain(folder: Path, shapes: Shapes, encoder: str, decoder: str) -> SparseAutoencoder:
    config = _config(folder)
    if config.activation != "ReLU":
        raise SaeError(f"{folder / CONFIG}: activation is {config.activation!r}; this format has ReLU only")
    w = fit(folder / WEIGHTS, read_safetensors(folder / WEIGHTS), shapes)
    return SparseAutoencoder(
        hook_point=parse_hook_point(config.hook_point, folder / CONFIG),
        W_enc=w[f"{encoder}.weight"].T,
        W_dec=w[f"{decoder}.weight"].T,
        b_enc=w[f"{encoder}.bias"],
        b_subtracted=None,
        scale=Scale.NONE,
        rectifiers=None,
        b_dec=w[f"{decoder}.bias"],
    )


def _config(folder: Path) -> ConvertedFile:
    config = read_config(folder / CONFIG, ConvertedFile, "a converted SAE")
    if (config.activation == "TopK") != (config.k is not None):
        raise SaeError(
            f"{folder / CONFIG}: activation {config.activation} with k {config.k}: TopK needs a k, ReLU has none"
        )
    return config


def _selection(config: ConvertedFile) -> Selection | None:
    return None if config.k is None else Selection(Among.ALL, config.k)
