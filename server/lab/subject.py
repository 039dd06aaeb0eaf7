"""Loads the model that the lab works on, and reads examples as the server would."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from monitors.fingerprint import model_fingerprint
from monitors.hook_points import find_layers
from monitors.lab.dataset import Example
from monitors.lab.subject import Subject, Tokens
from server.config import DEMO
from server.engines.base import EngineError
from server.engines.transformers.model import load_model
from server.tokenizer import ModelTokenizer, end_of_first_user_message


def load_subject(
    source: str | None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    layers_path: str | None = None,
    max_tokens: int = 512,
) -> Subject:
    """Load a causal language model, or an encoder (to measure on). No source means the demo model.

    Raises EngineError or HookPointError.
    """
    source = source or str(DEMO / "model")
    transformers_logging.disable_progress_bar()
    if _is_causal(source):
        loaded = load_model(source, device=device, dtype=dtype, layers_path=layers_path)
        return Subject(
            name=loaded.model_id,
            model=loaded.model,
            blocks=loaded.blocks,
            tokenize=(reader := _Reader(loaded.tokenizer)),
            token_texts=reader.token_texts,
            fingerprint=loaded.fingerprint,
            max_tokens=min(max_tokens, loaded.max_positions),
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModel.from_pretrained(source, use_safetensors=True, trust_remote_code=False)
    except Exception as error:
        raise EngineError(f"can't load an encoder from {source!r}: {error}") from error
    model.eval().requires_grad_(requires_grad=False)
    positions = int(getattr(model.config, "max_position_embeddings", 512))
    return Subject(
        name=Path(source).name,
        model=model,
        blocks=find_layers(model, layers_path),
        tokenize=(reader := _Reader(tokenizer)),
        token_texts=reader.token_texts,
        fingerprint=model_fingerprint(model),
        max_tokens=min(max_tokens, positions),
        is_causal=False,
    )


def _is_causal(source: str) -> bool:
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise EngineError(f"can't read a model's config from {source!r}: {error}") from error
    architectures = getattr(config, "architectures", None) or []
    return not architectures or any(
        str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in architectures
    )


class _Reader:
    """From an example to tokens: a conversation through the chat template, a text as it stands."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._reader = ModelTokenizer(tokenizer)

    def __call__(self, example: Example) -> Tokens:
        reference = None
        if example.messages:
            messages = [{"role": m.role, "content": m.content} for m in example.messages]
            prompt = self._reader.chat(messages)
            reference = end_of_first_user_message(self._reader, messages, prompt)
        else:
            prompt = self._reader.encode(example.text)
        reply = [] if example.reply is None else self._reply(example.reply)
        return Tokens((*prompt, *reply), len(prompt), reference)

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        return [self._tokenizer.decode([token]) for token in ids]

    def _reply(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
