"""Writes a trained SAE as a SAELens 6 folder, which SAELens and our own reader read."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from monitors.lab.sae.training import Trained
from monitors.types import HookPoint

_LEAST_FREQUENCY = 1e-10  # SAELens' floor before the logarithm


def write_saelens(
    trained: Trained, folder: Path, *, hook_point: HookPoint, model_name: str, frequency: Tensor | None = None
) -> None:
    """Write cfg.json and sae_weights.safetensors; with `frequency` [width] (share of tokens) also sparsity.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    width, d = trained.W_dec.shape
    config = {
        "architecture": "jumprelu",
        "d_in": d,
        "d_sae": width,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.0.0",
            "sae_lens_training_version": None,
            "model_name": model_name,
            "model_class_name": "AutoModelForCausalLM",
            "hook_name": str(hook_point),
            "hook_head_index": None,
            "prepend_bos": True,
        },
    }
    names = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    weights = {name: getattr(trained, name).float().contiguous() for name in names}
    save_file(weights, folder / "sae_weights.safetensors")
    if frequency is not None:
        sparsity = torch.log10(frequency.float().clamp(min=_LEAST_FREQUENCY))
        save_file({"sparsity": sparsity}, folder / "sparsity.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
