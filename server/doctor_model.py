"""The model as `interlock doctor` sees it: by its config and mapped files, so that nothing is read but what is sampled."""

from pathlib import Path
from typing import Any

import torch

from monitors.artifacts import ArtifactError, load_folder
from monitors.fingerprint import model_fingerprint
from server.config import ServerConfig
from server.findings import Finding
from server.memory import DEFAULT_CONTEXT, MemoryBudgetError, Wanted, budget, choose, free_host_bytes
from server.sizes import written


def check_model(config: ServerConfig) -> Finding:
    """The folder, and whether every monitor is for these weights."""
    from transformers import AutoConfig  # noqa: PLC0415  # heavy

    todo = "give a folder with config.json, *.safetensors and tokenizer files, or fetch the model into the hub cache"
    try:
        folder = _folder(config.model)
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        fingerprint = _fingerprint(folder, settings)
    except Exception as error:  # noqa: BLE001  # the libraries raise anything on a bad folder
        return Finding.problem("model", f"{config.model}: {error}", todo)
    found = f"{config.model} ({written(_size(folder))})"
    if config.monitors is None:
        return Finding.ok("model", f"{found}, no monitors")
    if fingerprint is None:
        return Finding.warning(
            "model", f"{found}; its fingerprint is known only once it is loaded", "interlock serve tells it"
        )
    text = settings.get_text_config(decoder=True)
    try:
        monitors = load_folder(
            config.monitors,
            fingerprint=fingerprint,
            d_model=text.hidden_size,
            num_layers=text.num_hidden_layers,
        )
    except (ArtifactError, OSError) as error:
        return Finding.problem(
            "model", f"{found}: {error}", "name the monitors that were fitted on this model"
        )
    return Finding.ok("model", f"{found}, and {len(monitors.monitors)} monitors for it")


def check_memory(config: ServerConfig) -> Finding:
    """Weights and KV cache against what is free. An estimate: the server measures."""
    from transformers import AutoConfig  # noqa: PLC0415  # heavy

    try:
        folder = _folder(config.model)
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config(decoder=True)
        heads = getattr(settings, "num_key_value_heads", None) or settings.num_attention_heads
        width = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
        weights = _size(folder)
    except Exception:  # noqa: BLE001  # `model` tells why
        return Finding.warning("memory", "not known without the model's config", "see `model`")
    has_gpu = config.device != "cpu" and torch.cuda.is_available()
    free = torch.cuda.mem_get_info()[0] if has_gpu else free_host_bytes()
    if free is None:
        return Finding.warning("memory", "what is free is not known here", "set INTERLOCK__KV_MEMORY")
    if weights > free:
        return Finding.problem(
            "memory",
            f"{written(weights)} of weights, {written(free)} free",
            "free memory, or take a smaller model",
        )
    room, source = budget(config.kv_memory, torch.device("cuda" if has_gpu else "cpu"))
    if room is not None and config.kv_memory == "auto":
        room = int(room * (free - weights) / free)  # the weights come first
    context = min(
        getattr(settings, "max_position_embeddings", None) or DEFAULT_CONTEXT,
        config.max_context or DEFAULT_CONTEXT,
    )
    fixed = frozenset({"max_batch", "max_context"} & config.model_fields_set)
    wanted = Wanted(config.max_batch, context, config.prefix_cache_tokens, fixed)
    num_bytes = 4 if config.dtype == "float32" or (config.dtype == "auto" and not has_gpu) else 2
    per_token = 2 * settings.num_hidden_layers * heads * width * num_bytes
    try:
        plan = choose(wanted, per_token, room, source)
    except MemoryBudgetError as error:
        return Finding.problem("memory", str(error), "give a smaller max_batch or max_context")
    found = f"{written(weights)} of weights; KV cache about {plan}"
    if (plan.max_batch, plan.max_context) != (wanted.max_batch, wanted.max_context):
        return Finding.warning("memory", f"{found}, smaller than its default", "free memory for more")
    return Finding.ok("memory", found)


def _folder(model: str) -> Path:
    """Of a folder or of a hub id in the cache; never fetches. Raises OSError."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415  # heavy

    if Path(model).is_dir():
        return Path(model)
    return Path(snapshot_download(model, local_files_only=True))


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _fingerprint(folder: Path, settings: Any) -> str | None:
    """From mapped files. None: the library renames or joins weights as it loads them. Raises OSError without weights."""
    from safetensors.torch import load_file  # noqa: PLC0415  # heavy
    from transformers import AutoModelForCausalLM  # noqa: PLC0415  # heavy

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise OSError("no *.safetensors in it")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings, trust_remote_code=False)
    weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    return None if any(parameter.is_meta for parameter in model.parameters()) else model_fingerprint(model)
