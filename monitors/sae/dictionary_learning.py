"""saprmarks/dictionary_learning: `config.json`, and `ae.pt` converted to `ae.safetensors` (`interlock sae convert`).

Formulas: `dictionary_learning/dictionary.py` and `trainers/`; each class has its own rule for b_dec (science, 2.2).
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from monitors.base import Scale
from monitors.sae.base import Among, Rectifiers, SaeError, Selection, SparseAutoencoder
from monitors.sae.files import Config, Shapes, fit, parse_module, read_config, read_safetensors
from monitors.types import HookPoint

WEIGHTS = "ae.safetensors"
_F, _D = ("d_sae",), ("d_model",)
_LINEAR: Shapes = {"encoder.weight": ("d_sae", "d_model"), "decoder.weight": ("d_model", "d_sae")}
_MATRICES: Shapes = {"W_enc": ("d_model", "d_sae"), "W_dec": ("d_sae", "d_model"), "b_enc": _F, "b_dec": _D}
CLASSES: Mapping[str, Shapes] = {
    "AutoEncoder": {**_LINEAR, "encoder.bias": _F, "bias": _D},
    "AutoEncoderNew": {**_LINEAR, "encoder.bias": _F, "decoder.bias": _D},
    "GatedAutoEncoder": {**_LINEAR, "r_mag": _F, "gate_bias": _F, "mag_bias": _F, "decoder_bias": _D},
    "JumpReluAutoEncoder": {**_MATRICES, "threshold": _F},
    "AutoEncoderTopK": {**_LINEAR, "encoder.bias": _F, "b_dec": _D},
    "BatchTopKSAE": {**_LINEAR, "encoder.bias": _F, "b_dec": _D, "threshold": ()},
    "MatryoshkaBatchTopKSAE": {**_MATRICES, "threshold": ()},
}
"""dict_class -> its tensors that decide the formula."""


class _Trainer(Config):
    dict_class: str
    activation_dim: int | None = None
    dict_size: int | None = None
    layer: int | None = None
    submodule_name: str | None = None
    k: int | None = Field(default=None, gt=0)


class _Config(Config):
    trainer: _Trainer


def read_dictionary_learning(folder: Path) -> SparseAutoencoder:
    """Read a folder. Raises SaeError."""
    path = folder / "config.json"
    trainer = read_config(path, _Config, "dictionary_learning").trainer
    if trainer.dict_class not in CLASSES:
        raise SaeError(f"{path}: dict_class {trainer.dict_class!r} is refused; known: {', '.join(CLASSES)}")
    point = _hook_point(path, trainer)
    w = _read(folder / WEIGHTS, trainer)
    return _autoencoder(path, trainer, point, w)


def _read(path: Path, trainer: _Trainer) -> dict[str, Tensor]:
    """Its tensors of the formula; k and group_sizes are integers, and known from the config or not needed."""
    tensors = {n: t for n, t in read_safetensors(path).items() if n not in {"k", "group_sizes"}}
    if trainer.dict_class == "AutoEncoderTopK":
        tensors.pop("threshold", None)  # an approximation that its own default does not use
    sizes = {"d_model": trainer.activation_dim, "d_sae": trainer.dict_size}
    return fit(
        path, tensors, CLASSES[trainer.dict_class], sizes={n: size for n, size in sizes.items() if size}
    )


def _autoencoder(
    path: Path, trainer: _Trainer, point: HookPoint, w: Mapping[str, Tensor]
) -> SparseAutoencoder:
    W_enc = w["W_enc"] if "W_enc" in w else w["encoder.weight"].T
    W_dec = w["W_dec"] if "W_dec" in w else w["decoder.weight"].T
    b_enc = w.get("encoder.bias", w.get("b_enc", torch.zeros(len(W_dec))))
    b_dec = next(w[name] for name in ("b_dec", "bias", "decoder.bias", "decoder_bias") if name in w)
    subtracted: Tensor | None = b_dec
    rectifiers, selection = None, None
    match trainer.dict_class:
        case "AutoEncoderNew":
            subtracted = None
        case "JumpReluAutoEncoder":
            subtracted, rectifiers = None, Rectifiers.jump(w["threshold"])
        case "GatedAutoEncoder":
            rectifiers = Rectifiers(
                -w["gate_bias"].double(), w["r_mag"].double().exp(), w["mag_bias"].double()
            )
        case "AutoEncoderTopK":
            if trainer.k is None:
                raise SaeError(f"{path}: AutoEncoderTopK needs trainer.k")
            selection = Selection(Among.ALL, trainer.k)
        case "BatchTopKSAE" | "MatryoshkaBatchTopKSAE":
            threshold = w["threshold"].double().item()
            if threshold < 0:
                raise SaeError(
                    f"{path}: its threshold was never set, so its features depend on the whole batch; "
                    "train it on, past threshold_start_step"
                )
            rectifiers = Rectifiers.jump(torch.full((len(W_dec),), threshold))
        case _:
            pass
    return SparseAutoencoder(
        hook_point=point,
        W_enc=W_enc,
        W_dec=W_dec,
        b_enc=b_enc,
        b_subtracted=subtracted,
        scale=Scale.NONE,
        rectifiers=rectifiers,
        b_dec=b_dec,
        selection=selection,
        published_l0=float(trainer.k) if trainer.k else None,
    )


def _hook_point(path: Path, trainer: _Trainer) -> HookPoint:
    """`submodule_name` is resid_post_layer_<L>; without one, `layer` is of the residual stream."""
    name = trainer.submodule_name
    if name is None and trainer.layer is not None:
        return HookPoint(trainer.layer)
    if name is not None and name.startswith("resid_post_layer_"):
        layer = name.removeprefix("resid_post_layer_")
        if layer.isdecimal():
            return HookPoint(int(layer))
    return parse_module(name or "", path)
