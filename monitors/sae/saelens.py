"""SAELens folders: `cfg.json` and `sae_weights.safetensors`, of version 6 and of the flat form before it.

Formulas and key names: SAELens 6, `sae_lens/saes/*.py` and `handle_pre_6_0_config` (science, section 2.1).
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from torch import Tensor

from monitors.base import Scale
from monitors.sae.base import Among, Rectifiers, SaeError, Selection, SparseAutoencoder
from monitors.sae.files import fit, parse_hook_point, read_safetensors
from monitors.types import HookPoint

_REFUSED = {
    "abstopk": "its features may be negative, and depend on all the others",
    "batchtopk": "SAELens saves a trained one as jumprelu; this is a training checkpoint",
    "matryoshka_batchtopk": "SAELens saves a trained one as jumprelu; this is a training checkpoint",
    "matching_pursuit": "features are found one after the other on the residual, so selected rows are not exact",
    "temporal": "it attends across tokens",
    "transcoder": "it reads the MLP's input, which is not a hook point here",
    "skip_transcoder": "it reads the MLP's input, which is not a hook point here",
    "jumprelu_transcoder": "it reads the MLP's input, which is not a hook point here",
    "jumprelu_skip_transcoder": "it reads the MLP's input, which is not a hook point here",
}
_SCALES = {
    "none": Scale.NONE,
    "expected_average_only_in": Scale.NONE,  # folded on download; SAELens itself leaves a local folder as it is
    "constant_norm_rescale": Scale.SQRT_D,
    "layer_norm": Scale.LAYER_NORM,
}


class _Metadata(BaseModel):
    """Of version 6. SAELens writes many more keys, which don't change the formula."""

    model_config = ConfigDict(frozen=True)
    hook_name: str
    hf_hook_name: str | None = None  # where both are given, this one is right (science, 2.1)


class _Config(BaseModel):
    """What decides the formula, of version 6; the older form is brought into this one."""

    model_config = ConfigDict(frozen=True)
    architecture: str
    d_in: int = Field(gt=0)
    d_sae: int = Field(gt=0)
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    reshape_activations: str = "none"
    k: int | None = Field(default=None, gt=0)
    rescale_acts_by_decoder_norm: bool = False
    metadata: _Metadata


_RAW = TypeAdapter(dict[str, object])


def read_saelens(folder: Path) -> SparseAutoencoder:
    """Read a folder. Raises SaeError for what can't be read feature by feature, with the reason."""
    config = _read_config(folder / "cfg.json")
    tensors = _read_tensors(folder / "sae_weights.safetensors", config)
    W_enc, W_dec = tensors["W_enc"], tensors["W_dec"]
    b_enc = tensors.get("b_enc", torch.zeros(config.d_sae))
    if "scaling_factor" in tensors:  # SAELens multiplies activations by it before decoding
        W_dec = W_dec * tensors["scaling_factor"][:, None]
    if (
        config.rescale_acts_by_decoder_norm
    ):  # of topk only: pre-activations times ||W_dec_j||, and back on decoding
        norms = W_dec.float().norm(dim=1)
        W_enc, b_enc, W_dec = W_enc.float() * norms, b_enc.float() * norms, W_dec.float() / norms[:, None]
    return SparseAutoencoder(
        hook_point=_hook_point(config, folder),
        W_enc=W_enc,
        W_dec=W_dec,
        b_enc=b_enc,
        b_subtracted=tensors["b_dec"] if config.apply_b_dec_to_input else None,
        scale=_SCALES[config.normalize_activations],
        rectifiers=_rectifiers(config.architecture, tensors),
        b_dec=tensors["b_dec"],
        selection=Selection(Among.ALL, config.k) if config.architecture == "topk" and config.k else None,
    )


def _read_config(path: Path) -> _Config:
    try:
        raw = _RAW.validate_json(path.read_bytes())
        config = _Config.model_validate(raw if "metadata" in raw else _from_before_6(raw))
    except (OSError, ValueError) as error:
        raise SaeError(f"{path}: not a SAELens config: {error}") from error
    name = config.architecture
    if name in _REFUSED:
        raise SaeError(f"{path}: architecture {name!r} is refused: {_REFUSED[name]}")
    if name not in _TENSORS:
        raise SaeError(f"{path}: unknown architecture {name!r}; known: {', '.join(_TENSORS)}")
    if name == "topk" and config.k is None:
        raise SaeError(f"{path}: architecture 'topk' needs k")
    if config.rescale_acts_by_decoder_norm and name != "topk":
        raise SaeError(
            f"{path}: rescale_acts_by_decoder_norm is for topk, not {name!r}: fold it before saving"
        )
    if config.normalize_activations not in _SCALES:
        known = ", ".join(_SCALES)
        raise SaeError(
            f"{path}: unknown normalize_activations {config.normalize_activations!r}; known: {known}"
        )
    if config.reshape_activations != "none":
        raise SaeError(
            f"{path}: reshape_activations {config.reshape_activations!r} reads attention heads, not a hook point"
        )
    return config


def _from_before_6(raw: Mapping[str, object]) -> dict[str, object]:
    """The flat form: other names, other defaults."""
    normalize = raw.get("normalize_activations") or "none"
    hook_name = raw.get("hook_name", raw.get("hook_point"))
    is_topk = raw.get("activation_fn_str", raw.get("activation_fn")) == "topk"
    settings = raw.get("activation_fn_kwargs")
    return {
        "k": settings.get("k") if is_topk and isinstance(settings, dict) else None,
        "architecture": "topk" if is_topk else raw.get("architecture", "standard"),
        "d_in": raw.get("d_in"),
        "d_sae": raw.get("d_sae"),
        "apply_b_dec_to_input": raw.get("apply_b_dec_to_input", True),
        "normalize_activations": "expected_average_only_in" if normalize is True else normalize,
        "reshape_activations": raw.get(
            "reshape_activations", "hook_z" if "hook_z" in str(hook_name) else "none"
        ),
        "metadata": {"hook_name": hook_name},
    }


_TENSORS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    # architecture -> tensor -> its shape, in names of the config
    "standard": {"b_enc": ("d_sae",)},
    "jumprelu": {"b_enc": ("d_sae",), "threshold": ("d_sae",)},
    "gated": {"b_gate": ("d_sae",), "r_mag": ("d_sae",), "b_mag": ("d_sae",)},
    "topk": {"b_enc": ("d_sae",)},
}
_ALWAYS = {"W_enc": ("d_in", "d_sae"), "W_dec": ("d_sae", "d_in"), "b_dec": ("d_in",)}
_OPTIONAL = {"scaling_factor": ("d_sae",)}


def _read_tensors(path: Path, config: _Config) -> dict[str, Tensor]:
    needed = {**_ALWAYS, **_TENSORS[config.architecture]}
    sizes = {"d_in": config.d_in, "d_sae": config.d_sae}
    return fit(path, read_safetensors(path), needed, optional=_OPTIONAL, sizes=sizes)


def _rectifiers(architecture: str, tensors: Mapping[str, Tensor]) -> Rectifiers | None:
    match architecture:
        case "jumprelu":
            return Rectifiers.jump(tensors["threshold"])
        case "gated":
            gain = tensors["r_mag"].double().exp()
            return Rectifiers(-tensors["b_gate"].double(), gain, tensors["b_mag"].double())
        case _:
            return None


_BRANCH = ("norm", "mlp", "attn")  # in the name of a module that is not a whole block


def _hook_point(config: _Config, folder: Path) -> HookPoint:
    module = config.metadata.hf_hook_name or ""
    if any(part in module for part in _BRANCH):
        raise SaeError(f"{folder}: hf_hook_name is {module!r}, which is not a hook point here")
    return parse_hook_point(config.metadata.hook_name, folder)
