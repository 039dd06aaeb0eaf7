"""Attaches to the residual stream at hook points. Closing what `attach` returns removes every hook."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from monitors.hook_points import Blocks, HookPointError
from monitors.types import HookKind, HookPoint

Visit = Callable[[HookPoint, Tensor], Tensor | None]
"""Sees the hidden state at a hook point, [..., d_model]. Returns its replacement, or None to leave it alone."""


def attach(blocks: Blocks, points: Iterable[HookPoint], visit: Visit) -> ExitStack:
    """Hook `visit` to each point. All or nothing: if one point fails, none stays attached.

    The result is a context manager with `close()`. What `visit` raises propagates out of the model's forward.
    Raises HookPointError for a layer that the model does not have.
    """
    with ExitStack() as stack:
        for point in points:
            blocks.check(point)
            stack.callback(_register(blocks.layers[point.layer], point, visit).remove)
        return stack.pop_all()


def _register(block: nn.Module, point: HookPoint, visit: Visit) -> RemovableHandle:
    """A block takes the residual stream as its first argument or as `hidden_states`, and returns it alone or first."""

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state = args[0] if args else kwargs.get("hidden_states")
        replacement = visit(point, _tensor(state, point, module))
        if replacement is None:
            return None
        return (
            ((replacement, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": replacement})
        )

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        state = output[0] if isinstance(output, tuple) else output
        replacement = visit(point, _tensor(state, point, module))
        if replacement is None:
            return None
        return (replacement, *output[1:]) if isinstance(output, tuple) else replacement

    if point.kind is HookKind.RESID_PRE:
        return block.register_forward_pre_hook(before, with_kwargs=True)
    return block.register_forward_hook(after)


def _tensor(state: Any, point: HookPoint, module: nn.Module) -> Tensor:
    if isinstance(state, Tensor):
        return state
    raise HookPointError(
        f"{point}: {type(module).__name__} has a {type(state).__name__} where its hidden state should be"
    )
