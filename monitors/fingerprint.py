"""A short name for the weights of a model, so that monitors are used only with the model they were fitted on."""

import hashlib
import json
from typing import Any

import torch
from torch import nn

_ESSENTIALS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
_SAMPLE_SIZE = 256  # values per parameter


def model_fingerprint(model: nn.Module) -> str:
    """sha256 (hex) of the config's essentials and of every parameter's name, shape and a strided sample.

    Samples are compared as bfloat16, so float32 and bfloat16 loads of one bfloat16 checkpoint agree (so does a float32
    checkpoint, rounded to bfloat16 or not); a fine-tune of the same shape differs. Where the model came from, its dtype
    and library versions don't count. A weight that is tied counts once, under its first name.
    """
    config: Any = model.config
    text = config.get_text_config(decoder=True)
    essentials = {name: getattr(text, name, None) for name in _ESSENTIALS}
    digest = hashlib.sha256(json.dumps(essentials, sort_keys=True).encode())
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{list(parameter.shape)}".encode())
        flat = parameter.detach().reshape(-1)
        stride = -(-flat.numel() // _SAMPLE_SIZE) | 1  # odd: an even one could stay within one column
        sample = flat[::stride].to("cpu", torch.bfloat16)
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
