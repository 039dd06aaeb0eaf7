"""Tiny random models of many architectures, from their configs: nothing is downloaded."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto import CONFIG_MAPPING

VOCAB_SIZE = 64

_LLAMA_LIKE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT2 = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_NO_GROUPS = {"num_key_value_heads": 4}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}


def _build(model_type: str, **config: Any) -> PreTrainedModel:
    """The same weights each time."""
    torch.manual_seed(0)
    config_class = CONFIG_MAPPING[model_type]
    model = AutoModelForCausalLM.from_config(config_class(**config), attn_implementation="eager")
    return model.eval()


def _llama_like(model_type: str, **config: Any) -> Callable[[], PreTrainedModel]:
    return partial(_build, model_type, **{**_LLAMA_LIKE, **config})


TINY: Mapping[str, Callable[[], PreTrainedModel]] = {
    "llama": _llama_like("llama"),
    "qwen3": _llama_like("qwen3"),
    "gemma2": _llama_like("gemma2", query_pre_attn_scalar=8, sliding_window=16),
    "gemma3_text": _llama_like("gemma3_text", query_pre_attn_scalar=8, sliding_window=16),
    "mistral": _llama_like("mistral", sliding_window=16),
    "gpt2": partial(_build, "gpt2", **_GPT2),
    "gpt_neox": _llama_like("gpt_neox", **_NO_GROUPS),
    "phi3": _llama_like("phi3"),
    "olmo2": _llama_like("olmo2"),
    "mixtral": _llama_like("mixtral", num_local_experts=4, num_experts_per_tok=2),
    "qwen2_moe": _llama_like("qwen2_moe", **_EXPERTS),
}
