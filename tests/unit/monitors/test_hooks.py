"""Hooks on blocks that return a tensor or a tuple, attached and removed as one."""

import pytest
import torch
from torch import nn

from monitors.hook_points import Blocks, HookPointError
from monitors.hooks import attach
from monitors.types import HookKind, HookPoint

PRE, POST = HookKind.RESID_PRE, HookKind.RESID_POST


class Block(nn.Module):
    def __init__(self, returns):
        super().__init__()
        self.returns = returns

    def forward(self, hidden_states, mask=None):
        out = hidden_states + 1
        return {"tensor": out, "tuple": (out, "cache"), "dict": {"hidden": out}}[self.returns]


def blocks_of(returns="tensor", num=3):
    return Blocks(tuple(Block(returns) for _ in range(num)), d_model=4, path="layers")


def num_hooks(blocks):
    return sum(len(b._forward_hooks) + len(b._forward_pre_hooks) for b in blocks.layers)


@pytest.mark.parametrize("returns", ["tensor", "tuple"])
@pytest.mark.parametrize("by_keyword", [False, True])
def test_reads_and_replaces_input_and_output(returns, by_keyword):
    blocks, seen = blocks_of(returns), {}

    def visit(point, hidden):
        seen[point] = hidden.clone()
        return hidden * 10

    x = torch.ones(1, 2, 4)
    with attach(blocks, [HookPoint(0, PRE), HookPoint(0, POST)], visit):
        out = blocks.layers[0](hidden_states=x) if by_keyword else blocks.layers[0](x)
    assert torch.equal(seen[HookPoint(0, PRE)], x)
    assert torch.equal(seen[HookPoint(0, POST)], x * 10 + 1)
    if returns == "tuple":
        out, cache = out
        assert cache == "cache"
    assert torch.equal(out, (x * 10 + 1) * 10)


def test_none_leaves_the_very_same_tensor():
    blocks = blocks_of()
    given = torch.ones(1, 4)
    with attach(blocks, [HookPoint(0, PRE), HookPoint(0)], lambda point, hidden: None):
        assert torch.equal(blocks.layers[0](given), given + 1)


def test_closing_removes_every_hook():
    blocks = blocks_of()
    hooks = attach(blocks, [HookPoint(0), HookPoint(1, PRE), HookPoint(2)], lambda point, hidden: None)
    assert num_hooks(blocks) == 3
    hooks.close()
    assert num_hooks(blocks) == 0


def test_a_failing_third_leaves_none():
    blocks = blocks_of()
    with pytest.raises(
        HookPointError, match=r"blocks.9.hook_resid_post: the model has layers 0 to 2 \(at 'layers'\)"
    ):
        attach(blocks, [HookPoint(0), HookPoint(1, PRE), HookPoint(9)], lambda point, hidden: None)
    assert num_hooks(blocks) == 0


def test_what_a_visit_raises_comes_out_of_the_model():
    def visit(point, hidden):
        raise ZeroDivisionError

    blocks = blocks_of()
    with attach(blocks, [HookPoint(0)], visit), pytest.raises(ZeroDivisionError):
        blocks.layers[0](torch.ones(1, 4))


def test_an_output_without_a_hidden_state_is_an_error():
    blocks = blocks_of("dict")
    with (
        attach(blocks, [HookPoint(0)], lambda point, hidden: None),
        pytest.raises(HookPointError, match="dict"),
    ):
        blocks.layers[0](torch.ones(1, 4))
