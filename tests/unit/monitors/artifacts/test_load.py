"""Artifacts come back as they were saved, and what does not fit is refused, with the remedy."""

import hashlib
import json
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from monitors.artifacts import (
    ArtifactError,
    SaeReference,
    load_folder,
    load_monitor,
    load_vector,
    save_monitor,
    save_vector,
)
from monitors.sae.saelens import read_saelens
from monitors.sae_features import SaeFeatures, Squash
from monitors.steering import SteeringVector
from monitors.types import CausalVerdict
from tests.unit.monitors.artifacts.builders import (
    MODEL,
    PRINT,
    TRANSFORMS,
    VECTORS,
    D,
    full_monitor,
    sae_feature,
    save_linear,
    save_push,
    write_sae,
)


def load(root, **changes):
    model = {"fingerprint": PRINT, "d_model": D, "num_layers": 3}
    return load_folder(root, **(model | changes))


def edit_json(path, **changes):
    content = json.loads(path.read_text())
    for key, value in changes.items():
        *parents, last = key.split("__")
        target = content
        for parent in parents:
            target = target[parent]
        target[last] = value
    path.write_text(json.dumps(content))


def edit_weights(folder, file="monitor.json", **tensors):
    """Other tensors, with the right hash: what a wrong exporter would write. None removes one."""
    path = folder / "weights.safetensors"
    changed = {name: tensor for name, tensor in (load_file(path) | tensors).items() if tensor is not None}
    save_file(changed, path)
    edit_json(folder / file, weights_sha256=hashlib.sha256(path.read_bytes()).hexdigest())


# --- what was saved comes back -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_a_monitor_comes_back_as_it_was(tmp_path, kind):
    saved = full_monitor("harm", TRANSFORMS[kind])
    save_monitor(saved, tmp_path / "harm", fingerprint=PRINT)
    loaded = load_monitor(tmp_path / "harm", MODEL)
    assert _facts(loaded) == _facts(saved)
    assert loaded.transform.params == saved.transform.params
    assert loaded.hook_points == saved.hook_points
    rows = {point: torch.randn(5, D) for point in saved.hook_points}
    values = [m.transform.values(rows) for m in (loaded, saved)]
    assert torch.equal(*values)
    assert torch.equal(*(loaded.transform.readout(v.double()) for v in values))


def _facts(m):
    return (
        *(
            m.name,
            m.version,
            m.aggregator,
            m.trained_with,
            m.link,
            m.exclude_first,
            m.calibration,
            m.evidence,
        ),
        m.transform.kind,
    )


@pytest.mark.parametrize("verdict", [None, CausalVerdict.WRITE_HANDLE])
@pytest.mark.parametrize("operation", VECTORS)
def test_a_vector_comes_back_as_it_was(tmp_path, operation, verdict):
    saved = replace(VECTORS[operation], verdict=verdict)
    save_vector(saved, tmp_path / "v", fingerprint=PRINT)
    loaded = load_vector(tmp_path / "v", MODEL)
    facts = [
        (v.name, v.operation, v.max_norm_ratio, v.gap, v.version, v.verdict, v.norm) for v in (loaded, saved)
    ]
    assert facts[0] == facts[1]
    x = torch.randn(5, D)
    for a, b in zip(loaded.directions, saved.directions, strict=True):
        assert a.hook_point == b.hook_point
        assert torch.equal(a.vector, b.vector)
        assert (a.offset, a.gap, a.tau) == (b.offset, b.gap, b.tau)
        assert (a.encoder is None) == (b.encoder is None)
        if a.encoder is not None:
            assert torch.equal(a.encoder.evaluate(x), b.encoder.evaluate(x))


def test_a_feature_of_an_sae_folder(tmp_path):
    reference = write_sae(tmp_path)
    feature = read_saelens(tmp_path / "saes" / "tiny").feature(7)
    save_monitor(full_monitor("weapons", feature), tmp_path / "weapons", fingerprint=PRINT, sae=reference)
    clamp = SteeringVector("clamp", "sae_clamp", (feature.direction,))
    save_vector(clamp, tmp_path / "clamp", fingerprint=PRINT, sae=reference)
    assert not (tmp_path / "weapons" / "weights.safetensors").exists()
    loaded = load(tmp_path)
    x = torch.randn(4, D)
    for column in (loaded.monitors[0].transform.columns[0], loaded.vectors["clamp"].directions[0].encoder):
        assert torch.equal(column.evaluate(x), feature.column.evaluate(x))


def save_features(root, **reference):
    """A monitor of features 7 and 2 of the SAE folder, with weights of its own."""
    write_sae(root)
    weight, bias = torch.tensor([1.5, -0.5]), torch.tensor([0.25, 0.0])
    transform = SaeFeatures.of(
        read_saelens(root / "saes" / "tiny"), (7, 2), weight, bias, squash=Squash.LOG1P
    )
    sae = SaeReference(format="saelens", path="saes/tiny", features=(7, 2), **reference)
    save_monitor(full_monitor("weapons", transform), root / "weapons", fingerprint=PRINT, sae=sae)
    return transform


def test_several_features_of_an_sae_folder(tmp_path):
    saved = save_features(tmp_path)
    assert load_file(tmp_path / "weapons" / "weights.safetensors").keys() == {"weight", "bias"}
    (loaded,) = load(tmp_path).monitors
    assert loaded.transform.params == saved.params
    x = torch.randn(4, D)
    assert torch.equal(loaded.transform.evaluate(x), saved.evaluate(x))


def test_a_feature_of_a_top_k_sae_is_read_by_the_whole_encoder_where_that_is_asked_for(tmp_path):
    write_sae(tmp_path)
    edit_json(tmp_path / "saes" / "tiny" / "cfg.json", architecture="topk", k=3)
    sae = read_saelens(tmp_path / "saes" / "tiny")
    saved = SaeFeatures.of(sae, (7,), torch.ones(1), torch.zeros(1), whole=True)
    reference = SaeReference(format="saelens", path="saes/tiny", features=(7,), encode="whole")
    save_monitor(full_monitor("one", saved), tmp_path / "one", fingerprint=PRINT, sae=reference)
    x = torch.randn(30, D)
    (loaded,) = load(tmp_path).monitors
    torch.testing.assert_close(loaded.transform.evaluate(x)[:, 0], sae.encode(x)[:, 7])
    edit_json(tmp_path / "one" / "monitor.json", sae__encode=None)
    with pytest.raises(ArtifactError, match=r"topk SAEs are refused.*ask for the whole encoder"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sae__features": [7, 20]}, "feature 20: the SAE has features 0 to 19"),
        ({"sae__features": [7]}, r"tensor 'weight' has shape \[2\]; needs \[1\]"),
        ({"sae__features": []}, "sae.features"),
        ({"sae__features": None}, "needs either 'feature' or 'features'"),
        ({"sae__feature": 7}, "needs either 'feature' or 'features'"),
        ({"sae__sha256": None}, "needs 'features' and 'sha256'"),
        ({"sae__sha256": "0" * 64}, "weights were changed or damaged"),
        ({"weights_sha256": "0" * 64}, "weights were changed or damaged"),
        ({"kind": "sae_feature"}, "names 'features'; needs one 'feature'"),
        ({"params": {}}, "param 'combine' is None; known: sum, max"),
        ({"params__k": 3}, "has params .*; needs {'combine': 'sum', 'squash': 'log1p'}"),
        ({"hook_points": ["blocks.2.hook_resid_post"]}, "but the SAE is for blocks.1.hook_resid_pre"),
    ],
)
def test_a_wrong_reference_to_several_features(tmp_path, changes, message):
    save_features(tmp_path)
    edit_json(tmp_path / "weapons" / "monitor.json", **changes)
    with pytest.raises(ArtifactError, match=message):
        load(tmp_path)


def test_an_sae_that_changed_is_refused_by_a_monitor_of_several_features(tmp_path):
    save_features(tmp_path)
    edit_json(tmp_path / "saes" / "tiny" / "cfg.json", apply_b_dec_to_input=False)
    with pytest.raises(ArtifactError, match="weights were changed or damaged"):
        load(tmp_path)


def test_a_reference_to_other_features_is_not_saved(tmp_path):
    saved = save_features(tmp_path)
    other = SaeReference(format="saelens", path="saes/tiny", features=(7, 3))
    with pytest.raises(ValueError, match=r"names features \(7, 3\), the monitor has \(7, 2\)"):
        save_monitor(full_monitor("x", saved), tmp_path / "x", fingerprint=PRINT, sae=other)


def test_a_folder_is_loaded_in_order_of_folder_names(tmp_path):
    for name in ("zeta", "alpha"):
        save_linear(tmp_path, name)
    save_push(tmp_path)
    (tmp_path / "notes").mkdir()
    loaded = load(tmp_path)
    assert [monitor.name for monitor in loaded.monitors] == ["alpha", "zeta"]
    assert list(loaded.vectors) == ["push"]
    assert loaded.bank("cpu").num_columns == 2


# --- what does not fit is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"fingerprint": "e" * 64},
            "made for the model with fingerprint f+; this one has e+. Serve that model, or fit",
        ),
        ({"d_model": 7}, "d_model is 6; this model has 7"),
        ({"num_layers": 1}, r"blocks.1.hook_resid_pre is beyond this model, which has layers 0 to 0"),
    ],
)
@pytest.mark.parametrize("what", ["monitor", "vector"])
def test_another_model(tmp_path, what, changes, message):
    if what == "monitor":
        save_linear(tmp_path, transform=TRANSFORMS["multi_layer"])
    else:
        save_vector(VECTORS["add"], tmp_path / "v", fingerprint=PRINT)
    with pytest.raises(ArtifactError, match=rf"{what}\.json: {message}"):
        load(tmp_path, **changes)


def test_another_tokenizer(tmp_path):
    save_monitor(
        full_monitor("harm", TRANSFORMS["linear"]), tmp_path / "harm", fingerprint=PRINT, tokenizer_hash="aa"
    )
    assert load(tmp_path, tokenizer_hash="aa").monitors
    assert load(tmp_path).monitors
    with pytest.raises(ArtifactError, match="made with tokenizer and chat template aa; this model has bb"):
        load(tmp_path, tokenizer_hash="bb")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "interlock.monitor/v2"}, "schema: .*interlock.monitor/v1"),
        ({"owner": "me"}, "owner: Extra inputs are not permitted.*docs/monitors.md"),
        ({"calibration__note": "x"}, "calibration.note: .*"),
        ({"kind": "oracle"}, "unknown kind 'oracle'; known: linear, direction, sae_feature"),
        ({"name": "not a name"}, "monitor name 'not a name'"),
        ({"hook_points": ["12"]}, "unknown hook point '12'; expected 'blocks.<layer>"),
        ({"hook_points": []}, "hook_points: "),
        ({"hook_points": ["blocks.0.hook_resid_post"] * 2}, "hook points repeat"),
        ({"aggregator__run__kind": "median"}, "unknown aggregator 'median'"),
        ({"aggregator__run__alpha": 2.0}, "alpha is 2.0"),
        ({"params": {"depth": 2}}, r"has params {'depth': 2}; kind 'linear' needs {}"),
        ({"token_scope__exclude_first": -1}, "exclude_first"),
        ({"weights_sha256": "0" * 64}, "sha256 is .*, but the artifact was made with 0+: .*restore them"),
        ({"weights_sha256": "0"}, "weights_sha256"),
        ({"sae": {"format": "saelens", "path": "x", "feature": 1}}, "'sae' is for kinds 'sae_feature' and"),
        ({"evidence__auroc": float("nan")}, "auroc"),
        ({"calibration__confidence": 1.0}, "confidence is 1.0, must be between 0 and 1"),
        (
            {"calibration__thresholds": [{"phase": "response", "fpr": 0, "value": 0.9, "certified": True}]},
            "fpr is 0",
        ),
        (
            {"calibration__thresholds": [{"phase": "reply", "fpr": 0.1, "value": 0.9, "certified": True}]},
            "phase",
        ),
    ],
)
def test_a_wrong_json(tmp_path, changes, message):
    edit_json(save_linear(tmp_path) / "monitor.json", **changes)
    with pytest.raises(ArtifactError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"weight": torch.randn(1, D, dtype=torch.float64)},
            "tensor 'weight' is torch.float64; needs float32",
        ),
        ({"weight": torch.full((1, D), torch.nan)}, "tensor 'weight' holds NaN or infinity"),
        ({"bias": torch.tensor([torch.inf])}, "tensor 'bias' holds NaN or infinity"),
        ({"weight": torch.randn(1, D + 1)}, r"weights have shapes .*weight \[1, 7\].*d_model is 6"),
        ({"weight": torch.randn(2, D)}, r"tensor 'weight' has shape \[2, 6\]; needs \[1, d_model\]"),
        ({"weight": torch.randn(D)}, r"tensor 'weight' has shape \[6\]"),
        ({"extra": torch.randn(1)}, "has tensors bias, extra, weight; needs exactly bias, weight"),
        ({"bias": None}, "has tensors weight; needs exactly bias, weight"),
    ],
)
def test_wrong_weights(tmp_path, tensors, message):
    edit_weights(save_linear(tmp_path), **tensors)
    with pytest.raises(ArtifactError, match=message):
        load(tmp_path)


def test_wrong_weights_of_a_vector(tmp_path):
    edit_weights(save_push(tmp_path), "vector.json", vector=torch.full((1, D), torch.nan))
    with pytest.raises(ArtifactError, match="tensor 'vector' holds NaN"):
        load(tmp_path)


def test_an_unknown_verdict_on_a_vector(tmp_path):
    edit_json(save_push(tmp_path) / "vector.json", evidence={"verdict": "proven"})
    with pytest.raises(ArtifactError, match=r"evidence.verdict: .*'write-handle'"):
        load(tmp_path)


def test_an_unknown_operation(tmp_path):
    edit_json(save_push(tmp_path) / "vector.json", operation="sae_clamp")
    with pytest.raises(ArtifactError, match="sae_clamp needs the feature's encoder row"):
        load(tmp_path)


def test_weights_that_are_missing_or_changed(tmp_path):
    weights = save_linear(tmp_path) / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ArtifactError, match="weights were changed or damaged"):
        load(tmp_path)
    weights.unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        load(tmp_path)


def test_json_that_is_not_json(tmp_path):
    (save_linear(tmp_path) / "monitor.json").write_text("{")
    with pytest.raises(ArtifactError, match="Invalid JSON"):
        load(tmp_path)


def test_pickle_under_another_name(tmp_path):
    folder = save_linear(tmp_path)
    data = pickle.dumps({"weight": [1.0]})
    (folder / "weights.safetensors").write_bytes(data)
    edit_json(folder / "monitor.json", weights_sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(ArtifactError, match="not a safetensors file"):
        load(tmp_path)


@pytest.mark.parametrize("suffix", [".pt", ".pkl", ".bin", ".joblib"])
def test_a_pickle_beside_the_weights(tmp_path, suffix):
    (save_linear(tmp_path) / f"probe{suffix}").touch()
    with pytest.raises(
        ArtifactError, match=f"probe{suffix}: pickle can execute code; convert it to safetensors"
    ):
        load(tmp_path)


def test_a_symlink_out_of_the_folder(tmp_path):
    root, elsewhere = tmp_path / "monitors", tmp_path / "elsewhere"
    weights = save_linear(root) / "weights.safetensors"
    elsewhere.mkdir()
    weights.rename(elsewhere / "weights.safetensors")
    weights.symlink_to(elsewhere / "weights.safetensors")
    with pytest.raises(ArtifactError, match=r"outside of the monitors folder .*; copy it"):
        load(root)


def test_a_symlink_inside_the_folder_is_fine(tmp_path):
    weights = save_linear(tmp_path) / "weights.safetensors"
    weights.rename(tmp_path / "shared.safetensors")
    weights.symlink_to(tmp_path / "shared.safetensors")
    assert load(tmp_path).monitors


@pytest.mark.parametrize(
    ("limit", "file"), [("_MAX_JSON_BYTES", "monitor.json"), ("_MAX_WEIGHTS_BYTES", "weights")]
)
def test_a_file_that_is_too_big(tmp_path, monkeypatch, limit, file):
    save_linear(tmp_path)
    monkeypatch.setattr(f"monitors.artifacts.files.{limit}", 10)
    with pytest.raises(ArtifactError, match=rf"{file}.*: [0-9,]+ bytes; at most 10 are read"):
        load(tmp_path)


def test_two_of_one_name(tmp_path):
    save_linear(tmp_path, "a")
    save_linear(tmp_path, "b")
    edit_json(tmp_path / "b" / "monitor.json", name="a")
    with pytest.raises(ArtifactError, match="two monitors are named a; rename one"):
        load(tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ArtifactError, match="no such folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sae__path": "../elsewhere"}, "outside of the monitors folder|cannot be read"),
        ({"sae__path": "/etc"}, "outside of the monitors folder"),
        ({"sae__feature": 20}, "feature 20: the SAE has features 0 to 19"),
        ({"sae__format": "gguf"}, "unknown SAE format 'gguf'; known: saelens"),
        ({"hook_points": ["blocks.2.hook_resid_post"]}, "but the SAE is for blocks.1.hook_resid_pre"),
        ({"weights_sha256": "0" * 64}, "weights were changed or damaged"),
        ({"params": {"scale": "none"}}, "needs none"),
    ],
)
def test_a_wrong_reference_to_an_sae(tmp_path, changes, message):
    root = tmp_path / "monitors"
    (tmp_path / "elsewhere").mkdir()
    reference = write_sae(root)
    save_monitor(full_monitor("weapons", sae_feature()), root / "weapons", fingerprint=PRINT, sae=reference)
    edit_json(root / "weapons" / "monitor.json", **changes)
    with pytest.raises(ArtifactError, match=message):
        load(root)


def test_an_sae_with_a_bad_row_or_a_changed_config(tmp_path):
    bad = torch.randn(D, 20)
    bad[0, 7] = torch.nan
    reference = write_sae(tmp_path, W_enc=bad)
    save_monitor(
        full_monitor("weapons", sae_feature()), tmp_path / "weapons", fingerprint=PRINT, sae=reference
    )
    with pytest.raises(ArtifactError, match="holds NaN"):
        load(tmp_path)
    edit_json(tmp_path / "saes" / "tiny" / "cfg.json", apply_b_dec_to_input=False)
    with pytest.raises(ArtifactError, match="weights were changed or damaged"):
        load(tmp_path)
