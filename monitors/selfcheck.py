"""Compares what hooks read with what transformers reports as `output_hidden_states`, before a server turns ready."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from monitors.hook_points import Blocks, HookPointError
from monitors.hooks import attach
from monitors.types import HookKind, HookPoint


@dataclass(frozen=True, slots=True)
class HookCheck:
    """What the self-check covered; that it returned means that everything covered was right."""

    num_layers: int
    last_layer: str  # how the last layer's output was checked, or that it was not


def check_hooks(model: nn.Module, blocks: Blocks, input_ids: Tensor) -> HookCheck:
    """Run the model on a few tokens and compare every hook point. input_ids: [1, T] int64.

    resid_pre of layer i must equal hidden_states[i], and resid_post of layer i hidden_states[i + 1], bit for bit.
    The last entry of hidden_states comes after the final norm: there, some module beside the blocks must turn what
    the hook read into it; if none does, the last layer's output is reported as not checked (its input still is).
    Raises HookPointError with the layer and the difference.
    """
    read: dict[HookPoint, Tensor] = {}
    norms: dict[str, tuple[Tensor, Tensor]] = {}  # name -> input, output
    points = [HookPoint(layer, kind) for layer in range(len(blocks.layers)) for kind in HookKind]
    with attach(blocks, points, lambda point, hidden: read.update({point: hidden.detach().clone()})) as hooks:
        for name, module in _siblings(model, blocks):
            hooks.callback(module.register_forward_hook(_record(name, norms)).remove)
        with torch.inference_mode():
            expected = model(input_ids=input_ids, output_hidden_states=True, use_cache=False).hidden_states
    last = len(blocks.layers) - 1
    if len(expected) != last + 2:
        raise HookPointError(
            f"{blocks.path}: {last + 1} blocks, but the model reports {len(expected)} hidden states"
        )
    for point in points:
        after = point.kind is HookKind.RESID_POST
        if not (after and point.layer == last):
            _compare(point, read.get(point), expected[point.layer + after])
    return HookCheck(last + 1, _check_last(HookPoint(last), read.get(HookPoint(last)), expected[-1], norms))


def _check_last(
    point: HookPoint, found: Tensor | None, expected: Tensor, norms: dict[str, tuple[Tensor, Tensor]]
) -> str:
    if found is None:
        raise HookPointError(f"{point}: the hook did not fire")
    if torch.equal(found, expected):
        return "equals hidden_states"
    for name, (before, after) in norms.items():
        if torch.equal(after, expected):
            _compare(point, found, before)
            return f"equals hidden_states through {name}"
    return "not checked: no final norm found"


def _compare(point: HookPoint, found: Tensor | None, expected: Tensor) -> None:
    if found is None:
        raise HookPointError(f"{point}: the hook did not fire")
    if found.shape != expected.shape:
        raise HookPointError(
            f"{point}: read {list(found.shape)}, but hidden_states has {list(expected.shape)}"
        )
    if not torch.equal(found, expected):
        difference = (found.float() - expected.float()).abs().max().item()
        raise HookPointError(
            f"{point}: what the hook reads differs from hidden_states by up to {difference:.3g}. "
            "The hook point is not the residual stream: give the path of the block list, or do not monitor this model."
        )


def _siblings(model: nn.Module, blocks: Blocks) -> list[tuple[str, nn.Module]]:
    """The modules beside the block list, where the final norm is."""
    parent, _, own = blocks.path.rpartition(".")
    return [
        (f"{parent}.{name}".lstrip("."), m)
        for name, m in model.get_submodule(parent).named_children()
        if name != own
    ]


def _record(name: str, norms: dict[str, tuple[Tensor, Tensor]]):  # type: ignore[no-untyped-def]  # noqa: ANN202
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            norms[name] = (args[0].detach().clone(), output.detach().clone())

    return hook
