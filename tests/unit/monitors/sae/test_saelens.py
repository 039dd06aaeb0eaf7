"""SAELens folders, written in their layout, against plain code from SAELens' formulas."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from monitors.sae import SAE_FORMATS
from monitors.sae.base import SaeError
from monitors.sae.saelens import read_saelens
from monitors.types import HookKind, HookPoint

D, F = 12, 20
CFG = {"d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu", "reshape_activations": "none"}
METADATA = {
    "sae_lens_version": "6.54.12",
    "model_name": "tiny",
    "hook_name": "blocks.1.hook_resid_post",
    "prepend_bos": True,
}


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(architecture):
    tensors = {"W_enc": randn(D, F, seed=1), "W_dec": randn(F, D, seed=2), "b_dec": randn(D, seed=3)}
    if architecture == "gated":
        return tensors | {
            name: 0.3 * randn(F, seed=4 + i) for i, name in enumerate(("b_gate", "r_mag", "b_mag"))
        }
    tensors["b_enc"] = 0.3 * randn(F, seed=7)
    if architecture == "jumprelu":
        tensors["threshold"] = 0.2 + randn(F, seed=8).abs()
    return tensors


def write(folder, tensors, **cfg):
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def write_v6(folder, architecture, tensors=None, **cfg):
    settings = CFG | {
        "architecture": architecture,
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
    }
    return write(folder, tensors or weights(architecture), **(settings | {"metadata": METADATA} | cfg))


def encode(architecture, w, x, *, normalize="none", apply_b_dec=True):
    """`SAE.process_sae_in` and `encode` of SAELens 6, in float64."""
    w = {name: tensor.double() for name, tensor in w.items()}
    x = x.double()
    if normalize == "constant_norm_rescale":
        x = x * (math.sqrt(D) / x.norm(dim=-1, keepdim=True))
    elif normalize == "layer_norm":
        x = x - x.mean(dim=-1, keepdim=True)
        x = x / (x.std(dim=-1, keepdim=True) + 1e-5)
    x = x - w["b_dec"] * apply_b_dec
    if architecture == "gated":
        pi = x @ w["W_enc"]
        active = (pi + w["b_gate"] > 0).double()
        return active * torch.relu(pi * w["r_mag"].exp() + w["b_mag"])
    hidden = x @ w["W_enc"] + w["b_enc"]
    if architecture == "jumprelu":
        return torch.relu(hidden) * (hidden > w["threshold"])
    return torch.relu(hidden)


def all_features(sae, x):
    return torch.stack([sae.feature(j).column.evaluate(x) for j in range(F)], dim=1)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated"])
@pytest.mark.parametrize(
    "normalize", ["none", "expected_average_only_in", "constant_norm_rescale", "layer_norm"]
)
@pytest.mark.parametrize("apply_b_dec", [True, False])
def test_features_equal_saelens(tmp_path, architecture, normalize, apply_b_dec):
    w, x = weights(architecture), 3 * randn(30, D, seed=9) + 1
    folder = write_v6(
        tmp_path / "sae", architecture, normalize_activations=normalize, apply_b_dec_to_input=apply_b_dec
    )
    expected = encode(architecture, w, x, normalize=normalize, apply_b_dec=apply_b_dec)
    found = all_features(read_saelens(folder), x)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert 0 < (found > 0).float().mean() < 1


def test_the_flat_form_before_version_6(tmp_path):
    flat = {"hook_point": "blocks.3.hook_resid_pre", "d_in": D, "d_sae": F, "activation_fn_str": "relu"}
    sae = read_saelens(write(tmp_path / "sae", weights("standard"), **flat, normalize_activations=False))
    assert sae.hook_point == HookPoint(3, HookKind.RESID_PRE)
    x = randn(9, D, seed=1)
    torch.testing.assert_close(
        all_features(sae, x).double(), encode("standard", weights("standard"), x), rtol=1e-5, atol=1e-5
    )


def test_a_scaling_factor_belongs_to_the_decoder(tmp_path):
    w = weights("standard")
    factor = torch.linspace(0.5, 2, F)
    plain = read_saelens(write_v6(tmp_path / "plain", "standard"))
    scaled = read_saelens(write_v6(tmp_path / "scaled", "standard", w | {"scaling_factor": factor}))
    for j in (0, 7):
        torch.testing.assert_close(scaled.feature(j).decoder, plain.feature(j).decoder * factor[j])
        torch.testing.assert_close(scaled.feature(j).encoder, plain.feature(j).encoder)


def test_half_precision_weights_are_read_as_float32(tmp_path):
    w = {name: tensor.bfloat16() for name, tensor in weights("jumprelu").items()}
    feature = read_saelens(write_v6(tmp_path / "sae", "jumprelu", w)).feature(2)
    assert feature.encoder.dtype == feature.decoder.dtype == torch.float32


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"architecture": "topk"}, "'topk' needs k"),
        ({"architecture": "abstopk", "k": 4}, "'abstopk' is refused: its features may be negative"),
        (
            {"metadata": METADATA | {"hf_hook_name": "model.layers.1.pre_feedforward_layernorm.output"}},
            "not a hook point here",
        ),
        ({"architecture": "batchtopk"}, "training checkpoint"),
        ({"architecture": "temporal"}, "attends across tokens"),
        ({"architecture": "transcoder"}, "not a hook point"),
        ({"architecture": "novel"}, "unknown architecture 'novel'; known: standard, jumprelu, gated"),
        ({"normalize_activations": "whiten"}, "unknown normalize_activations 'whiten'"),
        ({"reshape_activations": "hook_z"}, "hook_z"),
        (
            {"metadata": METADATA | {"hook_name": "blocks.1.hook_mlp_out"}},
            "unknown hook point 'blocks.1.hook_mlp_out'",
        ),
        ({"metadata": {}}, "hook_name"),
        ({"d_sae": F + 1}, r"tensor 'W_dec' is torch.float32 \[20, 12\]; needs floats \[21, 12\]"),
        (
            {"architecture": "jumprelu"},
            "needs W_dec, W_enc, b_dec, b_enc, threshold; found W_dec, W_enc, b_dec, b_enc",
        ),
    ],
)
def test_refusals_say_why(tmp_path, cfg, message):
    with pytest.raises(SaeError, match=message):
        read_saelens(
            write_v6(tmp_path / "sae", **({"architecture": "standard", "tensors": weights("standard")} | cfg))
        )


@pytest.mark.parametrize("rescale", [False, True])
def test_topk_is_refused_by_feature_and_exact_as_a_whole(tmp_path, rescale):
    w, x = weights("standard"), randn(30, D, seed=9)
    sae = read_saelens(write_v6(tmp_path / "sae", "topk", w, k=3, rescale_acts_by_decoder_norm=rescale))
    with pytest.raises(SaeError, match="topk SAEs are refused: which features are active depends on all"):
        sae.feature(0)
    found = sae.encode(x)
    norms = w["W_dec"].norm(dim=1) if rescale else torch.ones(F)
    for row, features in zip(x, found, strict=True):
        q = ((row - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norms
        expected = torch.zeros(F)
        for j in q.argsort(descending=True)[:3]:
            expected[j] = max(q[j], 0)
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        sae.decode(found, x), (found / norms) @ w["W_dec"] + w["b_dec"], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated"])
@pytest.mark.parametrize("normalize", ["none", "constant_norm_rescale", "layer_norm"])
def test_encoding_whole_rows_equals_encoding_feature_by_feature(tmp_path, architecture, normalize):
    sae = read_saelens(write_v6(tmp_path / "sae", architecture, normalize_activations=normalize))
    x = randn(20, D, seed=9)
    torch.testing.assert_close(sae.encode(x), all_features(sae, x), rtol=1e-4, atol=1e-4)


def test_topk_of_the_flat_form_is_read_with_its_k(tmp_path):
    flat = {"hook_name": "blocks.3.hook_resid_pre", "d_in": D, "d_sae": F, "activation_fn_str": "topk"}
    sae = read_saelens(write(tmp_path / "sae", weights("standard"), **flat, activation_fn_kwargs={"k": 2}))
    assert ((sae.encode(randn(9, D, seed=1)) > 0).sum(dim=1) <= 2).all()
    with pytest.raises(SaeError, match="topk SAEs are refused"):
        sae.feature(1)


def test_files_that_are_not_what_they_say(tmp_path):
    with pytest.raises(SaeError, match="not a SAELens config"):
        read_saelens(tmp_path)
    folder = write_v6(tmp_path / "sae", "standard")
    (folder / "sae_weights.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(SaeError, match="not a safetensors file"):
        read_saelens(folder)
    (folder / "cfg.json").write_text("[]")
    with pytest.raises(SaeError, match="not a SAELens config"):
        read_saelens(folder)


def test_a_feature_beyond_the_sae(tmp_path):
    sae = read_saelens(write_v6(tmp_path / "sae", "standard"))
    with pytest.raises(SaeError, match="features 0 to 19"):
        sae.feature(F)


def test_the_format_is_registered():
    assert SAE_FORMATS["saelens"] is read_saelens
