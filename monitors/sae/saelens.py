"""SAELens folders: `cfg.json` and `sae_weights.safetensors`, of version 6 and of the flat form before it.

Formulas and key names: SAELens 6, `sae_lens/saes/*.py` and `handle_pre_6_0_config` (science, section 2.1).
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import Tensor

from monitors.base import Scale
from monitors.sae.base import Rectifiers, SaeError, SparseAutoencoder
from monitors.types import HookPoint

_NEEDS_ALL_FEATURES = "which features are active depends on all the others, so selected rows are not exact"
_REFUSED = {
    "topk": _NEEDS_ALL_FEATURES,
    "abstopk": _NEEDS_ALL_FEATURES,
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


class _Config(BaseModel):
    """What decides the formula, of version 6; the older form is brought into this one."""

    model_config = ConfigDict(frozen=True)
    architecture: str
    d_in: int = Field(gt=0)
    d_sae: int = Field(gt=0)
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    reshape_activations: str = "none"
    metadata: _Metadata


_RAW = TypeAdapter(dict[str, object])


def read_saelens(folder: Path) -> SparseAutoencoder:
    """Read a folder. Raises SaeError for what can't be read feature by feature, with the reason."""
    config = _read_config(folder / "cfg.json")
    tensors = _read_tensors(folder / "sae_weights.safetensors", config)
    W_dec = tensors["W_dec"]
    if "scaling_factor" in tensors:  # SAELens multiplies activations by it before decoding
        W_dec = W_dec * tensors["scaling_factor"][:, None]
    return SparseAutoencoder(
        hook_point=_hook_point(config, folder),
        W_enc=tensors["W_enc"],
        W_dec=W_dec,
        b_enc=tensors.get("b_enc", torch.zeros(config.d_sae)),
        b_subtracted=tensors["b_dec"] if config.apply_b_dec_to_input else None,
        scale=_SCALES[config.normalize_activations],
        rectifiers=_rectifiers(config.architecture, tensors),
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
    return {
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
}
_ALWAYS = {"W_enc": ("d_in", "d_sae"), "W_dec": ("d_sae", "d_in"), "b_dec": ("d_in",)}
_OPTIONAL = {"scaling_factor": ("d_sae",)}


def _read_tensors(path: Path, config: _Config) -> dict[str, Tensor]:
    needed = {**_ALWAYS, **_TENSORS[config.architecture]}
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise SaeError(f"{path}: not a safetensors file: {error}") from error
    if not needed.keys() <= tensors.keys() <= (needed | _OPTIONAL).keys():
        found = ", ".join(sorted(tensors))
        raise SaeError(
            f"{path}: architecture {config.architecture!r} needs {', '.join(sorted(needed))}; found {found}"
        )
    for name, tensor in tensors.items():
        shape = tuple(getattr(config, size) for size in (needed | _OPTIONAL)[name])
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise SaeError(
                f"{path}: tensor {name!r} is {tensor.dtype} {list(tensor.shape)}; needs floats {list(shape)}"
            )
    return tensors


def _rectifiers(architecture: str, tensors: Mapping[str, Tensor]) -> Rectifiers | None:
    match architecture:
        case "jumprelu":
            threshold = tensors["threshold"].double()
            return Rectifiers(threshold, torch.ones_like(threshold), torch.zeros_like(threshold))
        case "gated":
            gain = tensors["r_mag"].double().exp()
            return Rectifiers(-tensors["b_gate"].double(), gain, tensors["b_mag"].double())
        case _:
            return None


def _hook_point(config: _Config, folder: Path) -> HookPoint:
    try:
        point = HookPoint.parse(config.metadata.hook_name)
    except ValueError as error:
        raise SaeError(f"{folder}: {error}") from error
    return point
