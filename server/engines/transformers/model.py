"""Loading a model and what the engine must know of it. No code from the hub is ever run, and no pickle read."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from monitors.fingerprint import model_fingerprint
from monitors.hook_points import Blocks, find_layers
from server.engines.base import EngineError, TokenLogprob
from server.engines.detokenize import token_bytes
from server.engines.transformers.sampling import Drawn


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal language model ready to run, its tokenizer, and the decoder blocks found in it."""

    model: Any
    tokenizer: Any
    blocks: Blocks
    model_id: str
    max_positions: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    fingerprint: str


def load_model(
    source: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    layers_path: str | None = None,
    model_id: str | None = None,
) -> LoadedModel:
    """Load a hub id or folder. Raises EngineError with what to do if it isn't there or isn't a causal language model."""
    target = _pick_device(device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=_pick_dtype(dtype, target), use_safetensors=True, trust_remote_code=False
        ).to(target)
    except EngineError:
        raise
    except Exception as error:
        # the libraries raise anything from KeyError to SafetensorError on a bad folder
        raise EngineError(
            f"can't load a model from {source!r} onto {target!r}: {error}\n"
            "Give a folder with config.json, *.safetensors and tokenizer files, or the id of a model that is in the hub cache."
        ) from error
    return prepare(model, tokenizer, model_id=model_id or Path(source).name, layers_path=layers_path)


def prepare(model: Any, tokenizer: Any, *, model_id: str, layers_path: str | None = None) -> LoadedModel:
    """Find out what the engine needs about a model that is in memory. Raises HookPointError if its blocks can't be found."""
    model.eval().requires_grad_(requires_grad=False)
    config = model.config.get_text_config(decoder=True)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        blocks=find_layers(model, layers_path),
        model_id=model_id,
        max_positions=int(getattr(config, "max_position_embeddings", None) or 4096),
        vocab_size=int(config.vocab_size),
        eos_token_ids=_eos_token_ids(model, tokenizer),
        fingerprint=model_fingerprint(model),
    )


def describe_token(tokenizer: Any) -> Callable[[Drawn], tuple[TokenLogprob, tuple[TokenLogprob, ...]]]:
    """How a drawn token and its alternatives are shown: text, bytes and log-probability."""

    @lru_cache(maxsize=65_536)
    def spell(token_id: int) -> tuple[str, bytes]:
        text = tokenizer.decode([token_id])
        piece = tokenizer.convert_ids_to_tokens(token_id) or ""
        return text, token_bytes(piece, text)

    def show(token_id: int, logprob: float) -> TokenLogprob:
        return TokenLogprob(token_id, *spell(token_id), logprob)

    def describe(drawn: Drawn) -> tuple[TokenLogprob, tuple[TokenLogprob, ...]]:
        own = show(drawn.token_id, drawn.logprob if drawn.logprob is not None else float("nan"))
        return own, tuple(show(token_id, logprob) for token_id, logprob in drawn.top)

    return describe


def _pick_device(device: str) -> str:
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _pick_dtype(dtype: str, device: str) -> torch.dtype | str:
    """`auto`: what the checkpoint is in, but float32 on a CPU, where scores are then exact and half precision is slow."""
    if dtype == "auto":
        return torch.float32 if device == "cpu" else "auto"
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise EngineError(f"unknown dtype {dtype!r}; known: auto, {', '.join(known)}")
    return known[dtype]


def _eos_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """End-of-sequence ids by the model's generation settings, and by the tokenizer."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(int(i) for i in [*ids, getattr(tokenizer, "eos_token_id", None)] if i is not None)
