"""How much memory the KV cache may take: measured from the model and the machine, before anything is served.

The cache is allocated when the first request comes. One that does not fit must be told at start, not by the first client.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from server.sizes import parse_size, written

_SHARE = {
    "cpu": 0.5,
    "cuda": 0.8,
}  # of what is free; the rest is for activations, logits and whatever else runs
_LEAST_CONTEXT = 256  # tokens; below that the context is not shrunk
_UNLIMITED = 1 << 60  # what cgroups show where there is no limit
DEFAULT_CONTEXT = 4096  # tokens, where the model would take more


class MemoryBudgetError(ValueError):
    """The KV cache that was asked for does not fit."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Sizes of the cache, and which of them somebody has asked for: those are never changed."""

    max_batch: int
    max_context: int  # tokens, of one response with its prompt
    prefix_tokens: int
    fixed: frozenset[str] = frozenset()  # names of fields above


@dataclass(frozen=True, slots=True)
class KvPlan:
    """What the cache will take at most."""

    max_batch: int
    max_context: int
    prefix_tokens: int
    bytes_per_token: int | None  # of all layers
    budget_bytes: int | None  # None: not known on this machine
    source: str  # of the budget, in words

    @property
    def num_bytes(self) -> int:
        """0 if it is not known."""
        return (self.bytes_per_token or 0) * (self.max_batch * (self.max_context + 1) + self.prefix_tokens)

    def __str__(self) -> str:
        told = f"{written(self.num_bytes)} for {self.max_batch} responses of {self.max_context} tokens"
        if self.prefix_tokens:
            told += f" and {self.prefix_tokens} tokens of prefixes"
        budget = "an unknown budget" if self.budget_bytes is None else f"{written(self.budget_bytes)}"
        return f"{told}, within {budget} ({self.source})"


@torch.inference_mode()
def kv_bytes_per_token(model: Any) -> int | None:
    """Of keys and values of all layers, by running the model on two tokens. None: it keeps something else."""
    from transformers import DynamicCache  # noqa: PLC0415  # heavy

    cache, ids = DynamicCache(), torch.zeros((1, 2), dtype=torch.long, device=model.device)
    try:
        model(input_ids=ids, past_key_values=cache, use_cache=True)
        held = [states for layer in cache.layers for states in (layer.keys, layer.values)]
        return sum(int(states.numel() * states.element_size()) for states in held) // 2
    except Exception:  # noqa: BLE001  # an architecture that the engine will refuse, and say why
        return None


def choose(wanted: Wanted, bytes_per_token: int | None, budget_bytes: int | None, source: str) -> KvPlan:
    """What is wanted if it fits; else smaller, where nobody asked for a size: prefixes, then responses, then context.

    Raises MemoryBudgetError.
    """
    batch, context, prefix = wanted.max_batch, wanted.max_context, wanted.prefix_tokens
    if budget_bytes is not None and bytes_per_token:
        room = budget_bytes // bytes_per_token  # tokens
        if "prefix_tokens" not in wanted.fixed:
            prefix = max(0, min(prefix, room - batch * (context + 1), room // 4))
        if "max_batch" not in wanted.fixed:
            batch = max(1, min(batch, (room - prefix) // (context + 1)))
        if "max_context" not in wanted.fixed:
            context = max(min(context, _LEAST_CONTEXT), min(context, (room - prefix) // batch - 1))
    plan = KvPlan(batch, context, prefix, bytes_per_token, budget_bytes, source)
    if budget_bytes is not None and plan.num_bytes > budget_bytes:
        raise MemoryBudgetError(
            f"the KV cache would need {plan}. Give a smaller --max-batch or --max-context, or more with "
            "INTERLOCK__KV_MEMORY"
        )
    return plan


def budget(setting: str, device: torch.device, root: Path = Path("/")) -> tuple[int | None, str]:
    """What the cache may take, in bytes, and where that is from: a setting as `4GiB`, or `auto`. None: not known."""
    if setting != "auto":
        return parse_size(setting), "INTERLOCK__KV_MEMORY"
    if device.type == "cuda":
        free: int | None = torch.cuda.mem_get_info(device)[0]
    else:
        free = free_host_bytes(root) if device.type == "cpu" else None
    if free is None:
        return None, "what is free is not known here"
    share = _SHARE[device.type]
    return int(free * share), f"{share:.0%} of {written(free)} free"


def free_host_bytes(root: Path = Path("/")) -> int | None:
    """What this process may still take: of the machine's memory and of its container's, the less. None: not known."""
    found = [_free_of_machine(root), _free_of_container(root)]
    return min((free for free in found if free is not None), default=None)


def _free_of_machine(root: Path) -> int | None:
    """proc(5): an estimate of what can be had without swapping."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _free_of_container(root: Path) -> int | None:
    """The limit of the control group (version 2, or 1), less what is used and can't be dropped."""
    for folder, limit, used, cached in (
        ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most = int((root / folder / limit).read_text())
            held = int((root / folder / used).read_text())
            stat = dict(
                line.split() for line in (root / folder / "memory.stat").read_text().strip().splitlines()
            )
        except (OSError, ValueError):  # no such version, or `max`
            continue
        return None if most > _UNLIMITED else max(0, most - held + int(stat.get(cached, 0)))
    return None
