"""A fingerprint follows the weights, not how they were loaded."""

import copy

import pytest
import torch

from monitors.fingerprint import model_fingerprint
from tests.tiny_models import TINY


@pytest.fixture
def model():
    return TINY["llama"]()


def test_it_is_the_same_each_time(model):
    assert model_fingerprint(model) == model_fingerprint(TINY["llama"]())


def test_a_bfloat16_checkpoint_loaded_as_float32_is_the_same_model(model):
    as_bfloat16 = copy.deepcopy(model).to(torch.bfloat16)
    as_float32 = copy.deepcopy(as_bfloat16).float()
    assert model_fingerprint(as_bfloat16) == model_fingerprint(as_float32) == model_fingerprint(model)


def test_where_it_came_from_does_not_matter(model):
    before = model_fingerprint(model)
    model.config._name_or_path = "/elsewhere"
    model.config.transformers_version = "0"
    assert model_fingerprint(model) == before


@pytest.mark.parametrize("name", ["model.layers.2.mlp.down_proj.weight", "model.norm.weight"])
def test_a_fine_tune_is_another_model(model, name):
    before = model_fingerprint(model)
    with torch.no_grad():
        model.get_parameter(name).mul_(1.02)
    assert model_fingerprint(model) != before


def test_another_vocabulary_or_architecture_is_another_model(model):
    model.config.vocab_size += 1
    prints = {model_fingerprint(m) for m in (model, TINY["llama"](), TINY["mistral"](), TINY["qwen3"]())}
    assert len(prints) == 4


def test_a_tied_weight_counts_once():
    model = TINY["gpt2"]()
    before = model_fingerprint(model)
    assert model.lm_head.weight is model.transformer.wte.weight
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    assert model_fingerprint(model) != before
