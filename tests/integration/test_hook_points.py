"""On many architectures: what the hooks read is the model's own residual stream."""

from functools import cache

import pytest
import torch
from torch import nn

from monitors.bank import Bank
from monitors.base import Monitor
from monitors.hook_points import Blocks, HookPointError, find_layers
from monitors.hooks import attach
from monitors.linear import Linear
from monitors.runtime import RowSpan, Runtime
from monitors.selfcheck import check_hooks
from monitors.types import HookKind, HookPoint
from tests.tiny_models import TINY

IDS = torch.randint(3, 64, (2, 24), generator=torch.Generator().manual_seed(0))
build = cache(lambda name: TINY[name]())  # each model once


@pytest.fixture(params=TINY)
def model(request):
    return build(request.param)


@torch.inference_mode()
def hidden_states(model):
    return model(IDS, output_hidden_states=True, use_cache=False).hidden_states


def test_hooks_read_the_hidden_states(model):
    blocks = find_layers(model)
    assert len(blocks.layers) == model.config.num_hidden_layers
    assert blocks.d_model == model.config.hidden_size
    read = {}
    points = [HookPoint(layer, kind) for layer in range(len(blocks.layers)) for kind in HookKind]
    with attach(blocks, points, lambda point, hidden: read.update({point: hidden.clone()})):
        expected = hidden_states(model)
    for point in points:
        index = point.layer + (point.kind is HookKind.RESID_POST)
        if index < len(blocks.layers):  # the last of hidden_states comes after the final norm
            torch.testing.assert_close(read[point], expected[index], rtol=0, atol=1e-6)


def test_the_self_check_passes_and_covers_the_last_layer(model):
    check = check_hooks(model, find_layers(model), IDS[:1])
    assert check.num_layers == model.config.num_hidden_layers
    assert "norm" in check.last_layer or "ln_f" in check.last_layer


def test_a_multi_layer_probe_equals_its_formula_on_the_hidden_states(model):
    blocks = find_layers(model)
    points = tuple(HookPoint(layer, HookKind.RESID_PRE) for layer in range(len(blocks.layers)))
    weight = torch.randn(len(points), blocks.d_model, generator=torch.Generator().manual_seed(1))
    runtime = Runtime(
        blocks, Bank([Monitor("probe", Linear(points, weight, torch.tensor([0.5])))], "cpu"), {}
    )
    runtime.begin([RowSpan(24), RowSpan(24)])
    expected = sum(h @ w for h, w in zip(hidden_states(model), weight, strict=False)) + 0.5
    values = runtime.end()
    runtime.close()
    torch.testing.assert_close(values.reshape(2, 24), expected, rtol=1e-5, atol=1e-5)


class _Renamed(nn.Module):
    """A block list that is not the residual stream: the MLPs of the real blocks."""

    def __init__(self, model):
        super().__init__()
        self.inner, self.config = model, model.config
        self.mlps = nn.ModuleList(layer.mlp for layer in model.model.layers)

    def forward(self, **kwargs):
        return self.inner(**kwargs)


def test_the_self_check_refuses_a_hook_point_that_is_not_the_residual_stream():
    model = _Renamed(build("llama"))
    with pytest.raises(
        HookPointError, match=r"blocks.0.hook_resid_pre: what the hook reads differs .* by up to"
    ):
        check_hooks(model, find_layers(model, "mlps"), IDS[:1])


def test_the_self_check_refuses_blocks_that_do_not_run():
    model = build("llama")
    blocks = find_layers(model)
    unused = Blocks((*blocks.layers[:-1], nn.Identity()), blocks.d_model, blocks.path)
    with pytest.raises(HookPointError, match=r"blocks.2.hook_resid_pre: the hook did not fire"):
        check_hooks(model, unused, IDS[:1])


def test_the_self_check_sees_a_wrong_output_of_the_last_layer():
    model = build("llama")
    blocks = find_layers(model)
    norm = blocks.layers[-1].input_layernorm  # is given the right state, and returns another
    with pytest.raises(HookPointError, match=r"blocks.2.hook_resid_post: what the hook reads differs"):
        check_hooks(model, Blocks((*blocks.layers[:-1], norm), blocks.d_model, blocks.path), IDS[:1])


def test_the_self_check_leaves_no_hooks():
    def num_hooks():
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())

    model = build("gpt2")
    hidden_states(model)  # transformers installs its own hooks at the first use of output_hidden_states
    before = num_hooks()
    check_hooks(model, find_layers(model), IDS[:1])
    assert num_hooks() == before
