"""The finder, on models that the search must refuse or be told about."""

from types import SimpleNamespace

import pytest
from torch import nn

from monitors.hook_points import HOOK_POINTS, HookPointError, find_layers
from monitors.types import HookKind, HookPoint


class GradientCheckpointingLayer(nn.Module):
    """Stands for transformers' class: found by name."""


class Block(GradientCheckpointingLayer):
    pass


class Marked(nn.Module):
    """Listed in `_no_split_modules` of its model only."""


def config_of(num_layers=3, model_type="novel"):
    text = SimpleNamespace(num_hidden_layers=num_layers, hidden_size=8, model_type=model_type)
    return SimpleNamespace(model_type=model_type, get_text_config=lambda decoder: text)


def model_of(decoder=None, config=None, no_split=(), **modules):
    model = nn.Module()
    model.config = config or config_of()
    model._no_split_modules = list(no_split)
    for name, module in modules.items():
        model.add_module(name, module)
    if decoder is not None:
        model.get_decoder = lambda: model.get_submodule(decoder)
    return model


def layers(num=3, kind=Block):
    return nn.ModuleList(kind() for _ in range(num))


def holder(**modules):
    return nn.ModuleDict(modules)


@pytest.mark.parametrize(
    ("model", "path"),
    [
        (model_of(model=holder(layers=layers())), "model.layers"),
        (
            model_of(decoder="model", model=holder(layers=layers()), draft=holder(layers=layers())),
            "model.layers",
        ),
        (model_of(model=holder(layers=layers()), vision_tower=holder(layers=layers())), "model.layers"),
        (model_of(model=holder(layers=layers(), experts=layers(kind=nn.Identity))), "model.layers"),
        (model_of(no_split=["Marked"], h=layers(kind=Marked)), "h"),
        (model_of(decoder="odd", odd=nn.Identity(), blocks=layers()), "blocks"),
    ],
    ids=["plain", "decoder first", "no towers", "only blocks", "no_split_modules", "odd get_decoder"],
)
def test_finds(model, path):
    blocks = find_layers(model)
    assert blocks.path == path
    assert blocks.d_model == 8
    assert blocks.layers == tuple(model.get_submodule(path))


def test_finds_by_what_transformers_records():
    class Recorded(nn.Module):
        pass

    model = model_of(h=layers(kind=Recorded))
    model._can_record_outputs = {"hidden_states": [SimpleNamespace(target_class=Recorded)]}
    assert find_layers(model).path == "h"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            model_of(a=layers(), b=layers()),
            r"2 lists fit \(a, b\).*Give the path, or add a row to HOOK_POINTS",
        ),
        (model_of(a=layers(2)), r"no list fits.*ModuleLists of this model: a \(2\)"),
        (model_of(a=layers(kind=nn.Identity)), "no list fits"),
        (nn.Identity(), "no transformers config"),
        (
            model_of(a=layers(), config=config_of(num_layers=None)),
            "num_hidden_layers=None decoder blocks; no list fits",
        ),
    ],
)
def test_refuses_when_it_cannot_be_sure(model, message):
    with pytest.raises(HookPointError, match=message):
        find_layers(model)


def test_a_given_path_wins():
    model = model_of(a=layers(), b=layers())
    assert find_layers(model, "b").path == "b"
    with pytest.raises(HookPointError, match=r"no module 'c'; ModuleLists of this model: a \(3\), b \(3\)"):
        find_layers(model, "c")
    with pytest.raises(HookPointError, match=r"'a.0' is a Block, not a list of blocks"):
        find_layers(model, "a.0")


def test_the_table_wins_over_the_search(monkeypatch):
    monkeypatch.setitem(HOOK_POINTS, "novel", "b")
    assert find_layers(model_of(a=layers(), b=layers())).path == "b"


def test_a_layer_that_the_model_does_not_have():
    blocks = find_layers(model_of(h=layers()))
    blocks.check(HookPoint(2, HookKind.RESID_PRE))
    with pytest.raises(HookPointError, match="layers 0 to 2"):
        blocks.check(HookPoint(3))
