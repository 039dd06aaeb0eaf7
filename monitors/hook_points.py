"""Finds the decoder blocks of any causal language model. If it can't be sure, it refuses."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from monitors.types import HookPoint

HOOK_POINTS: Mapping[str, str] = {
    # config.model_type -> dotted path of the block list, for families that the search below can't resolve
    "blenderbot": "model.decoder.layers",
    "cpmant": "cpmant.encoder.layers",
    "openai-gpt": "transformer.h",
}

_OTHER_TOWERS = ("vision", "visual", "image", "audio", "speech")


class HookPointError(Exception):
    """A hook point does not exist in this model, or what is read there is not the residual stream."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """The decoder blocks of a model, in order."""

    layers: tuple[nn.Module, ...]
    d_model: int
    path: str  # of the block list in the model, "model.layers"

    def check(self, point: HookPoint) -> None:
        """Raise HookPointError if this model has no such layer."""
        if point.layer >= len(self.layers):
            last = len(self.layers) - 1
            raise HookPointError(f"{point}: the model has layers 0 to {last} (at {self.path!r})")


def find_layers(model: nn.Module, path: str | None = None) -> Blocks:
    """Find the decoder blocks of a transformers causal language model.

    `path` names the block list ("model.layers") and wins over HOOK_POINTS, which wins over the search: the
    ModuleList of `num_hidden_layers` items that transformers itself treats as decoder blocks, under
    `get_decoder()` first, then in the whole model without its vision and audio towers.
    Raises HookPointError, which says what was tried and how to give a path.
    """
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise HookPointError(
            f"{type(model).__name__} has no transformers config; pass a causal language model"
        )
    text = config.get_text_config(decoder=True)
    given: str | None = path or HOOK_POINTS.get(config.model_type) or HOOK_POINTS.get(text.model_type)
    layers_path = given or _search(model, getattr(text, "num_hidden_layers", None))
    return Blocks(tuple(_block_list(model, layers_path)), text.hidden_size, layers_path)


def _block_list(model: nn.Module, path: str) -> nn.ModuleList:
    try:
        layers = model.get_submodule(path)
    except AttributeError as error:
        raise HookPointError(
            f"{type(model).__name__} has no module {path!r}; {_known_lists(model)}"
        ) from error
    if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
        raise HookPointError(
            f"{path!r} is a {type(layers).__name__}, not a list of blocks; {_known_lists(model)}"
        )
    return layers


def _search(model: nn.Module, num_layers: int | None) -> str:
    block_names = set(getattr(model, "_no_split_modules", None) or ())
    recorded = tuple(_recorded_block_types(model))

    def is_block(module: nn.Module) -> bool:
        names = {cls.__name__ for cls in type(module).__mro__}
        return (
            "GradientCheckpointingLayer" in names or bool(names & block_names) or isinstance(module, recorded)
        )

    found = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == num_layers
        and not any(word in path.lower() for word in _OTHER_TOWERS)
        and all(map(is_block, module))
    }
    in_decoder = _decoder_modules(model)
    paths: list[str] = [path for path, module in found.items() if module in in_decoder] or list(found)
    if len(paths) == 1:
        return paths[0]
    outcome = f"{len(paths)} lists fit ({', '.join(paths)})" if paths else "no list fits"
    raise HookPointError(
        f"{type(model).__name__}: can't tell the decoder blocks: looked under get_decoder(), then in the whole model, "
        f"for a ModuleList of num_hidden_layers={num_layers} decoder blocks; {outcome}. "
        f"Give the path, or add a row to HOOK_POINTS in monitors/hook_points.py. {_known_lists(model)}"
    )


def _decoder_modules(model: nn.Module) -> set[nn.Module]:
    decoder = model.get_decoder() if callable(getattr(model, "get_decoder", None)) else None  # type: ignore[operator]
    return set(decoder.modules()) if isinstance(decoder, nn.Module) else set()


def _recorded_block_types(model: nn.Module) -> Iterator[type]:
    """The classes whose outputs transformers records as `hidden_states`."""
    for module in model.modules():
        recorders = (getattr(module, "_can_record_outputs", None) or {}).get("hidden_states", ())
        for recorder in recorders if isinstance(recorders, list | tuple) else (recorders,):
            block_type = getattr(recorder, "target_class", recorder)
            if isinstance(block_type, type):
                yield block_type


def _known_lists(model: nn.Module) -> str:
    lists = [f"{path} ({len(m)})" for path, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    return f"ModuleLists of this model: {', '.join(lists) or 'none'}"
