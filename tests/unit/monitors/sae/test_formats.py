"""Folders in the layouts of other projects, against each project's formula written out plainly."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from monitors.artifacts.files import ArtifactError, check_sae_files, hash_files
from monitors.sae import SAE_FORMATS
from monitors.sae.base import SaeError
from monitors.types import HookKind, HookPoint

D, F = 10, 24
POINT = "blocks.3.hook_resid_post"


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = 2 * randn(40, D, seed=100) + 0.5
W = {
    "E": randn(F, D, seed=1),
    "R": randn(D, F, seed=2),
    "be": 0.3 * randn(F, seed=3),
    "bd": 0.5 * randn(D, seed=4),
    "t": 0.2 + randn(F, seed=5).abs(),
}


def write(folder, config, tensors, *, config_name="config.json", weights_name="sae.safetensors"):
    (folder / weights_name).parent.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / config_name).write_text(json.dumps(config))
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / weights_name)
    return folder


def check(sae, expected, *, reconstruction=None):
    """Whole rows and, where there are any, single features are what the formula says."""
    assert sae.hook_point == HookPoint(3)
    assert 0 < (expected > 0).float().mean() < 1
    torch.testing.assert_close(sae.encode(X), expected.float(), rtol=1e-4, atol=1e-4)
    if sae.selection is None:
        single = torch.stack([sae.feature(j).column.evaluate(X) for j in range(F)], dim=1)
        torch.testing.assert_close(single, expected.float(), rtol=1e-4, atol=1e-4)
    else:
        with pytest.raises(SaeError, match="SAEs are refused"):
            sae.feature(0)
    if reconstruction is not None:
        torch.testing.assert_close(sae.decode(sae.encode(X), X), reconstruction.float(), rtol=1e-4, atol=1e-4)


def relu(p):
    return p.clamp(min=0)


def jump(p, t):
    return torch.where(p > t, relu(p), torch.zeros_like(p))


def topk(f, k):
    kept = torch.zeros_like(f)
    for i, row in enumerate(f):
        for j in sorted(range(len(row)), key=lambda j: -row[j])[:k]:
            kept[i, j] = row[j]
    return kept


def gemma_tensors():
    return {"W_enc": W["E"].T, "W_dec": W["R"].T, "b_enc": W["be"], "b_dec": W["bd"], "threshold": W["t"]}


def write_npz(folder, **arrays):
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **arrays)
    return folder


def test_gemma_scope_by_its_path(tmp_path):
    folder = tmp_path / "gemma-scope-2b-pt-res" / "layer_3" / "width_16k" / "average_l0_71"
    write_npz(folder, **{name: t.numpy() for name, t in gemma_tensors().items()})
    sae = SAE_FORMATS["gemma_scope"](folder)
    f = jump(X @ W["E"].T + W["be"], W["t"])
    check(sae, f, reconstruction=f @ W["R"].T + W["bd"])
    assert sae.published_l0 == 71


def test_gemma_scope_elsewhere_takes_a_hook_point_file(tmp_path):
    folder = write_npz(tmp_path / "sae", **{name: t.numpy() for name, t in gemma_tensors().items()})
    with pytest.raises(SaeError, match=r"write hook_point\.json beside them"):
        SAE_FORMATS["gemma_scope"](folder)
    before = hash_files(folder)
    (folder / "hook_point.json").write_text('{"hook_point": "blocks.2.hook_resid_pre"}')
    assert SAE_FORMATS["gemma_scope"](folder).hook_point == HookPoint(2, HookKind.RESID_PRE)
    assert hash_files(folder) != before


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gemma-scope-2b-pt-mlp/layer_3", "MLP's output"),
        ("gemma-scope-2b-pt-att/layer_3", "attention heads"),
        ("gemma-scope-2b-pt-transcoders/layer_3", "transcoder"),
        ("gemma-scope-2b-pt-res/embedding", "embedding"),
    ],
)
def test_gemma_scope_elsewhere_than_on_the_residual_stream_is_refused(tmp_path, path, message):
    folder = write_npz(tmp_path / path, **{name: t.numpy() for name, t in gemma_tensors().items()})
    with pytest.raises(SaeError, match=message):
        SAE_FORMATS["gemma_scope"](folder)


def test_an_npz_with_a_pickle_in_it_is_refused(tmp_path):
    arrays = {name: t.numpy() for name, t in gemma_tensors().items()}
    folder = write_npz(
        tmp_path / "gemma-scope-2b-pt-res" / "layer_1", **(arrays | {"b_enc": np.array([{}], dtype=object)})
    )
    with pytest.raises(SaeError, match="not an npz file of numbers"):
        SAE_FORMATS["gemma_scope"](folder)


def test_npz_files_and_files_in_sub_folders_count_for_the_hash(tmp_path):
    folder = write_npz(tmp_path / "sae", a=np.zeros(3))
    hashes = {hash_files(folder)}
    np.savez(folder / "params.npz", a=np.ones(3))
    hashes.add(hash_files(folder))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "final.safetensors").write_bytes(b"1")
    hashes.add(hash_files(folder))
    (folder / "checkpoints" / "final.safetensors").write_bytes(b"2")
    hashes.add(hash_files(folder))
    assert len(hashes) == 4
    (folder / "acceptance.json").write_text("{}")
    assert hash_files(folder) in hashes


def test_a_pickle_in_a_sub_folder_is_refused(tmp_path):
    folder = write_npz(tmp_path / "sae", a=np.zeros(3))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "final.pth").write_bytes(b"")
    with pytest.raises(ArtifactError, match="pickle can execute code"):
        check_sae_files(folder, tmp_path, hash_files(folder))


GEMMA_2 = {
    "architecture": "jump_relu",
    "model_name": "google/gemma-3-270m",
    "hf_hook_point_in": "model.layers.3.output",
    "hf_hook_point_out": "model.layers.3.output",
    "affine_connection": False,
    "l0": 60,
}


def write_gemma_2(folder, **config):
    tensors = {name.replace("W_", "w_"): t for name, t in gemma_tensors().items()}
    return write(folder, GEMMA_2 | config, tensors, weights_name="params.safetensors")


def test_gemma_scope_2(tmp_path):
    sae = SAE_FORMATS["gemma_scope_2"](write_gemma_2(tmp_path / "sae"))
    f = jump(X @ W["E"].T + W["be"], W["t"])
    check(sae, f, reconstruction=f @ W["R"].T + W["bd"])
    assert sae.published_l0 == 60


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"affine_connection": True}, "transcoder"),
        (
            {
                "hf_hook_point_in": "model.layers.3.pre_feedforward_layernorm.output",
                "hf_hook_point_out": "model.layers.3.post_feedforward_layernorm.output",
            },
            "transcoder",
        ),
        (
            {
                "hf_hook_point_in": "model.layers.3.self_attn.o_proj.input",
                "hf_hook_point_out": "model.layers.3.self_attn.o_proj.input",
            },
            "not a hook point here",
        ),
        ({"architecture": "topk"}, "unknown architecture 'topk'"),
    ],
)
def test_gemma_scope_2_refusals(tmp_path, config, message):
    with pytest.raises(SaeError, match=message):
        SAE_FORMATS["gemma_scope_2"](write_gemma_2(tmp_path / "sae", **config))


LLAMA = {
    "encoder.weight": W["E"],
    "encoder.bias": W["be"],
    "decoder.weight": W["R"],
    "decoder.bias": W["bd"],
}
LLAMA_CONFIG = {
    "hook_point_in": POINT,
    "hook_point_out": POINT,
    "act_fn": "jumprelu",
    "jump_relu_threshold": 0.6,
    "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": 7.5, "out": 7.5},
    "d_model": D,
}


def write_llama(folder, **config):
    return write(
        folder,
        LLAMA_CONFIG | config,
        LLAMA,
        config_name="hyperparams.json",
        weights_name="checkpoints/final.safetensors",
    )


def test_llama_scope_scales_its_input_and_not_its_threshold(tmp_path):
    sae = SAE_FORMATS["llama_scope"](write_llama(tmp_path / "sae"))
    c = math.sqrt(D) / 7.5
    f = jump((X * c) @ W["E"].T + W["be"], torch.tensor(0.6))
    check(sae, f, reconstruction=(f @ W["R"].T + W["bd"]) / c)


def test_llama_scope_r1_has_a_threshold_per_feature(tmp_path):
    tensors = LLAMA | {"log_jumprelu_threshold": W["t"].log()}
    folder = write(tmp_path / "sae", LLAMA_CONFIG, tensors, weights_name="sae_weights.safetensors")
    c = math.sqrt(D) / 7.5
    check(SAE_FORMATS["llama_scope_r1"](folder), jump((X * c) @ W["E"].T + W["be"], W["t"]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hook_point_out": "blocks.3.hook_mlp_out"}, "transcoder"),
        ({"hook_point_in": "blocks.3.hook_mlp_out", "hook_point_out": None}, "unknown hook point"),
        ({"dataset_average_activation_norm": None}, "average_activation_norm"),
        ({"act_fn": "topk"}, "unknown act_fn"),
    ],
)
def test_llama_scope_refusals(tmp_path, config, message):
    with pytest.raises(SaeError, match=message):
        SAE_FORMATS["llama_scope"](write_llama(tmp_path / "sae", **config))


SPARSIFY = {"d_in": D, "k": 4, "expansion_factor": 0, "num_latents": F, "normalize_decoder": True}


def write_sparsify(folder, **config):
    tensors = {"encoder.weight": W["E"], "encoder.bias": W["be"], "W_dec": W["R"].T, "b_dec": W["bd"]}
    return write(folder, SPARSIFY | config, tensors, config_name="cfg.json")


@pytest.mark.parametrize("normalize_decoder", [True, False])
def test_sparsify_subtracts_b_dec_whatever_normalize_decoder_says(tmp_path, normalize_decoder):
    folder = write_sparsify(tmp_path / "layers.3", normalize_decoder=normalize_decoder)
    f = topk(relu((X - W["bd"]) @ W["E"].T + W["be"]), 4)
    check(SAE_FORMATS["sparsify"](folder), f, reconstruction=f @ W["R"].T + W["bd"])


def test_sparsify_groupmax_keeps_the_largest_of_each_group(tmp_path):
    folder = write_sparsify(tmp_path / "layers.3", activation="groupmax")
    f = relu((X - W["bd"]) @ W["E"].T + W["be"])
    kept = torch.zeros_like(f)
    for i in range(len(f)):
        for group in range(4):
            span = range(group * F // 4, (group + 1) * F // 4)
            best = max(span, key=lambda j: f[i, j])
            kept[i, best] = f[i, best]
    check(SAE_FORMATS["sparsify"](folder), kept)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("layers.3", {"transcode": True}, "transcoder"),
        ("layers.3", {"skip_connection": True}, "transcoder"),
        ("layers.3.mlp", {}, "not a whole block"),
        ("embed_tokens", {}, "not a whole block"),
        ("mine", {}, "hook_point.json"),
        ("layers.3", {"activation": "groupmax", "k": 5}, "5 groups"),
        ("layers.3", {"num_latents": F + 1}, r"needs floats \[25, 10\]"),
    ],
)
def test_sparsify_refusals(tmp_path, name, config, message):
    with pytest.raises(SaeError, match=message):
        SAE_FORMATS["sparsify"](write_sparsify(tmp_path / name, **config))


LINEAR = {"encoder.weight": W["E"], "encoder.bias": W["be"], "decoder.weight": W["R"]}
MATRICES = {"W_enc": W["E"].T, "W_dec": W["R"].T, "b_enc": W["be"], "b_dec": W["bd"]}
GATE = {"r_mag": 0.3 * randn(F, seed=6), "gate_bias": 0.4 * randn(F, seed=7), "mag_bias": W["be"]}


def gated():
    x_enc = (X - W["bd"]) @ W["E"].T
    gate = (x_enc + GATE["gate_bias"] > 0).float()
    return gate * relu(GATE["r_mag"].exp() * x_enc + GATE["mag_bias"])


SUBTRACTED = (X - W["bd"]) @ W["E"].T + W["be"]
PLAIN = X @ W["E"].T + W["be"]
DICTIONARIES = {
    "AutoEncoder": (LINEAR | {"bias": W["bd"]}, relu(SUBTRACTED)),
    "AutoEncoderNew": (LINEAR | {"decoder.bias": W["bd"]}, relu(PLAIN)),
    "GatedAutoEncoder": (
        {"encoder.weight": W["E"], "decoder.weight": W["R"], "decoder_bias": W["bd"]} | GATE,
        gated(),
    ),
    "JumpReluAutoEncoder": (MATRICES | {"threshold": W["t"]}, jump(PLAIN, W["t"])),
    "AutoEncoderTopK": (
        LINEAR | {"b_dec": W["bd"], "k": torch.tensor(3), "threshold": torch.tensor(-1.0)},
        topk(relu(SUBTRACTED), 3),
    ),
    "BatchTopKSAE": (
        LINEAR | {"b_dec": W["bd"], "k": torch.tensor(3), "threshold": torch.tensor(0.9)},
        jump(SUBTRACTED, torch.tensor(0.9)),
    ),
    "MatryoshkaBatchTopKSAE": (
        MATRICES
        | {"k": torch.tensor(3), "threshold": torch.tensor(0.9), "group_sizes": torch.tensor([8, 16])},
        jump(SUBTRACTED, torch.tensor(0.9)),
    ),
}


def write_dictionary(folder, dict_class, tensors, **trainer):
    settings = {"dict_class": dict_class, "activation_dim": D, "dict_size": F, "layer": 3, "k": 3}
    config = {
        "trainer": settings | {"submodule_name": "resid_post_layer_3"} | trainer,
        "buffer": {"ctx_len": 128},
    }
    return write(folder, config, tensors, weights_name="ae.safetensors")


@pytest.mark.parametrize("dict_class", DICTIONARIES)
def test_dictionary_learning(tmp_path, dict_class):
    tensors, f = DICTIONARIES[dict_class]
    sae = SAE_FORMATS["dictionary_learning"](write_dictionary(tmp_path / "sae", dict_class, tensors))
    check(sae, f, reconstruction=f @ W["R"].T + W["bd"])


def test_dictionary_learning_refusals(tmp_path):
    read = SAE_FORMATS["dictionary_learning"]
    tensors = DICTIONARIES["BatchTopKSAE"][0]
    with pytest.raises(SaeError, match="threshold was never set"):
        read(write_dictionary(tmp_path / "a", "BatchTopKSAE", tensors | {"threshold": torch.tensor(-1.0)}))
    with pytest.raises(SaeError, match="'CrossCoder' is refused"):
        read(write_dictionary(tmp_path / "b", "CrossCoder", tensors))
    with pytest.raises(SaeError, match="not a hook point here"):
        read(write_dictionary(tmp_path / "c", "BatchTopKSAE", tensors, submodule_name="mlp_out_layer_3"))


OPENAI = {"encoder.weight": W["E"], "decoder.weight": W["R"], "pre_bias": W["bd"], "latent_bias": W["be"]}


def test_openai_relu_has_no_layer_norm(tmp_path):
    folder = write(tmp_path / "sae", {"hook_point": POINT, "activation": "ReLU"}, OPENAI)
    f = relu((X - W["bd"]) @ W["E"].T + W["be"])
    check(SAE_FORMATS["openai"](folder), f, reconstruction=f @ W["R"].T + W["bd"])


def test_openai_topk_has_a_layer_norm(tmp_path):
    folder = write(tmp_path / "sae", {"hook_point": POINT, "activation": "TopK", "k": 5}, OPENAI)
    mu = X.mean(dim=1, keepdim=True)
    std = X.std(dim=1, keepdim=True)
    normed = (X - mu) / (std + 1e-5)
    f = relu(topk((normed - W["bd"]) @ W["E"].T + W["be"], 5))
    check(SAE_FORMATS["openai"](folder), f, reconstruction=(f @ W["R"].T + W["bd"]) * std + mu)


@pytest.mark.parametrize(("family", "suffix"), [("goodfire", "_linear"), ("qresearch", "")])
def test_goodfire_and_qresearch_subtract_nothing(tmp_path, family, suffix):
    tensors = {
        f"encoder{suffix}.weight": W["E"],
        f"encoder{suffix}.bias": W["be"],
        f"decoder{suffix}.weight": W["R"],
        f"decoder{suffix}.bias": W["bd"],
    }
    sae = SAE_FORMATS[family](write(tmp_path / "sae", {"hook_point": POINT}, tensors))
    check(sae, relu(PLAIN), reconstruction=relu(PLAIN) @ W["R"].T + W["bd"])


def test_qwen_scope_is_topk_and_subtracts_nothing(tmp_path):
    tensors = {"W_enc": W["E"], "W_dec": W["R"], "b_enc": W["be"], "b_dec": W["bd"]}
    config = {"hook_point": POINT, "activation": "TopK", "k": 5}
    check(SAE_FORMATS["qwen_scope"](write(tmp_path / "sae", config, tensors)), relu(topk(PLAIN, 5)))


def test_mwhanna_is_refused_by_name(tmp_path):
    with pytest.raises(SaeError, match="mwhanna's are transcoders"):
        SAE_FORMATS["mwhanna"](tmp_path)


@pytest.mark.parametrize("family", sorted(SAE_FORMATS))
def test_an_empty_folder_is_an_error_that_names_it(tmp_path, family):
    with pytest.raises(SaeError, match=str(tmp_path)):
        SAE_FORMATS[family](tmp_path)


def test_files_of_the_wrong_kind(tmp_path):
    folder = write(tmp_path / "sae", {"hook_point": POINT}, OPENAI | {"extra": W["bd"] + 1})
    with pytest.raises(
        SaeError, match=r"needs decoder\.weight, encoder\.weight, latent_bias, pre_bias; found"
    ):
        SAE_FORMATS["openai"](folder)
    save_file({**OPENAI, "latent_bias": torch.ones(F, dtype=torch.int64)}, folder / "sae.safetensors")
    with pytest.raises(SaeError, match=r"'latent_bias' is torch.int64"):
        SAE_FORMATS["openai"](folder)
