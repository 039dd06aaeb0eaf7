"""The converter of pickles: tensors come out, and nothing that a pickle wants to do happens."""

import json
import os
import pickle

import pytest
import torch

from monitors.lab.sae.convert import convert
from monitors.sae import SAE_FORMATS
from monitors.sae.base import SaeError

D, F, POINT = 6, 12, "blocks.2.hook_resid_post"


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


GOODFIRE = {
    "encoder_linear.weight": randn(F, D, seed=1),
    "encoder_linear.bias": randn(F, seed=2),
    "decoder_linear.weight": randn(D, F, seed=3),
    "decoder_linear.bias": randn(D, seed=4),
}


def test_goodfire(tmp_path):
    torch.save(GOODFIRE, tmp_path / "sae.pth")
    converted = convert(tmp_path / "sae.pth", tmp_path / "out", "goodfire", hook_point=POINT)
    x = randn(5, D, seed=9)
    expected = (x @ GOODFIRE["encoder_linear.weight"].T + GOODFIRE["encoder_linear.bias"]).clamp(min=0)
    torch.testing.assert_close(converted.sae.encode(x), expected)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "sae.safetensors"}


def test_openai_with_its_nested_settings(tmp_path):
    state = {
        "encoder.weight": randn(F, D, seed=1),
        "decoder.weight": randn(D, F, seed=2),
        "pre_bias": randn(D, seed=3),
        "latent_bias": randn(F, seed=4),
        "stats_last_nonzero": torch.zeros(F, dtype=torch.int64),
        "activation": "TopK",
        "activation_state_dict": {"k": 4, "postact_fn": "ReLU"},
    }
    torch.save(state, tmp_path / "sae.pt")
    sae = convert(tmp_path / "sae.pt", tmp_path / "out", "openai", hook_point=POINT).sae
    assert sae.selection.k == 4
    assert ((sae.encode(randn(5, D, seed=9)) > 0).sum(dim=1) <= 4).all()


def test_dictionary_learning_takes_the_config_beside_it(tmp_path):
    state = {
        "encoder.weight": randn(F, D, seed=1),
        "encoder.bias": randn(F, seed=2),
        "decoder.weight": randn(D, F, seed=3),
        "b_dec": randn(D, seed=4),
        "k": torch.tensor(3),
        "threshold": torch.tensor(0.5),
    }
    torch.save(state, tmp_path / "ae.pt")
    with pytest.raises(SaeError, match=r"config\.json: missing"):
        convert(tmp_path / "ae.pt", tmp_path / "out", "dictionary_learning")
    trainer = {"dict_class": "BatchTopKSAE", "activation_dim": D, "dict_size": F, "layer": 2, "k": 3}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    convert(tmp_path / "ae.pt", tmp_path / "out", "dictionary_learning")
    assert SAE_FORMATS["dictionary_learning"](tmp_path / "out").num_features == F


class _Payload:
    """Unpickling this naively would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [torch.save, lambda held, path: path.write_bytes(pickle.dumps(held))])
def test_a_pickle_that_would_do_something_is_refused_and_does_nothing(tmp_path, save):
    save(GOODFIRE | {"extra": _Payload(tmp_path / "owned")}, tmp_path / "sae.pt")
    with pytest.raises(SaeError, match="refused: it holds more than tensors"):
        convert(tmp_path / "sae.pt", tmp_path / "out", "goodfire", hook_point=POINT)
    assert {path.name for path in tmp_path.iterdir()} == {"sae.pt"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": torch.ones(2)}, r"refused: 'extra' \(Tensor\) is no part of this format"),
        ({"encoder_linear.bias": torch.full((F,), float("nan"))}, "NaN or infinity"),
        ({"encoder_linear.bias": torch.ones(F, dtype=torch.int64)}, "needs dense floats"),
        ({"encoder_linear.bias": torch.ones(F, 1)}, "has 2 dimensions; needs 1"),
        ({"encoder_linear.bias": torch.ones(F + 1)}, r"needs floats"),
    ],
)
def test_what_is_no_part_of_the_format_is_refused(tmp_path, change, message):
    torch.save(GOODFIRE | change, tmp_path / "sae.pt")
    with pytest.raises(SaeError, match=message):
        convert(tmp_path / "sae.pt", tmp_path / "out", "goodfire", hook_point=POINT)
    assert not (tmp_path / "out").exists()


def test_questions_that_are_answered_before_anything_is_read(tmp_path):
    source = tmp_path / "sae.pt"
    with pytest.raises(SaeError, match="needs no conversion"):
        convert(source, tmp_path / "out", "saelens")
    with pytest.raises(SaeError, match="--hook-point"):
        convert(source, tmp_path / "out", "goodfire")
    with pytest.raises(SaeError, match="exists already"):
        convert(source, tmp_path, "goodfire", hook_point=POINT)
