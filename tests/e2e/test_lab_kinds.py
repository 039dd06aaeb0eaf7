"""Every kind of monitor, fitted by the command on the demo model, loads again and scores; those of SAE features go all the way."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from monitors.artifacts import load_monitor
from monitors.artifacts.load import ModelIdentity
from monitors.lab.sae.opening import open_sae
from tests.e2e.test_lab import interlock, write

_SUBJECTS = (
    *((name, 1) for name in ("owls", "bees", "cows", "frogs", "otters", "geese", "foxes", "moles")),
    *((name, 0) for name in ("roses", "tulips", "ferns", "basil", "garlic", "onions", "pansies", "mint")),
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A monitors folder with an SAE in it, and data beside it."""
    folder = tmp_path_factory.mktemp("kinds")
    write(folder / "train.jsonl", _SUBJECTS)
    done = interlock(
        "sae", "fit", "--data", folder / "train.jsonl", "--layer", "blocks.2.hook_resid_post",
        "--out", folder / "monitors/saes/mine", "--width", 128, "--k", 8, "--steps", 200, "--batch", 128,
        "--cache", folder / "acts",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder


def fit(lab: Path, kind: str, *words: object, out: str = "") -> dict:
    name = out or kind
    done = interlock(
        "monitor", "fit", "--name", name, "--data", lab / "train.jsonl", "--out", lab / "monitors" / name,
        "--cache", lab / "acts", "--layers", 2, "--kind", kind, "--penalty", 1, "--folds", 2, *words,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return json.loads((lab / "monitors" / name / "monitor.json").read_text())


def identity(file: dict) -> ModelIdentity:
    return ModelIdentity(file["model"]["fingerprint"], file["model"]["d_model"], 6)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mlp", ("mlp", "sigmoid")),
        ("polynomial", ("polynomial", "sigmoid")),
        ("condition", ("condition", "identity")),
        ("condition_mean", ("condition_mean", "identity")),
        ("novelty", ("novelty", "identity")),
    ],
)
def test_a_kind_is_fitted_by_name(lab: Path, kind: str, expected: tuple[str, str]):
    file = fit(lab, kind)
    assert (file["kind"], file["link"]) == expected
    monitor = load_monitor(lab / "monitors" / kind, identity(file))
    assert monitor.aggregator.kind in monitor.transform.aggregators
    candidates = json.loads((lab / "monitors" / kind / "card.json").read_text())["fit"]["candidates"]
    assert {c["recipe"]["aggregator"]["kind"] for c in candidates} <= monitor.transform.aggregators


def test_features_of_an_sae_in_the_monitors_folder_are_referred_to(lab: Path):
    sae = lab / "monitors/saes/mine"
    file = fit(lab, "sae_features", "--sae", sae, "--exclude-first", 1)
    _, sha256 = open_sae(sae, "saelens")
    assert (file["sae"]["path"], file["sae"]["sha256"]) == ("saes/mine", sha256)
    monitor = load_monitor(lab / "monitors/sae_features", identity(file))
    assert monitor.transform.features == tuple(file["sae"]["features"])
    folder = lab / "monitors/sae_features"
    words = ("--data", lab / "train.jsonl", "--cache", lab / "acts")
    for command in ("verify", "eval"):
        done = interlock("monitor", command, folder, *words)
        assert done.exit_code == 0, done.output
    again = json.loads((folder / "monitor.json").read_text())
    assert (again["sae"], again["weights_sha256"]) == (file["sae"], file["weights_sha256"])
    card = json.loads((folder / "card.json").read_text())
    assert {card[part]["weights_sha256"] for part in ("fit", "causal", "evaluation")} == {
        file["weights_sha256"]
    }


def test_features_of_an_sae_elsewhere_are_copied(lab: Path, tmp_path: Path):
    shutil.copytree(lab / "monitors/saes/mine", tmp_path / "mine")
    file = fit(lab, "sae_features_max", "--sae", tmp_path / "mine", out="copied")
    assert "sae" not in file
    assert (file["params"]["combine"], file["aggregator"]["run"]["kind"]) == ("max", "max")
    monitor = load_monitor(lab / "monitors/copied", identity(file))
    sae, _ = open_sae(tmp_path / "mine", "saelens")
    x = torch.randn(5, sae.W_enc.shape[0])
    chosen = sae.encode(x)[:, list(monitor.transform.features)]
    torch.testing.assert_close(monitor.transform.activations(x), chosen, rtol=1e-4, atol=1e-4)
    done = interlock(
        "monitor", "verify", lab / "monitors/copied", "--data", lab / "train.jsonl", "--cache", lab / "acts"
    )
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("--kind", "sae_features"),
            "kind 'sae_features' chooses features of an SAE: give its folder with --sae",
        ),
        (("--kind", "sae_features", "--sae", "SAE", "--sae-format", "mine"), "unknown SAE format 'mine'"),
        (("--kind", "sae_features", "--sae", "SAE", "--sae-encode", "half"), "must be selected or whole"),
        (("--kind", "sae_features", "--sae", "TOPK"), "give --sae-encode whole"),
        (
            ("--kind", "sae_features", "--sae", "TOPK", "--sae-encode", "whole"),
            "must lie in the monitors folder",
        ),
        (
            ("--kind", "polynomial", "--aggregator", "ema:0.1"),
            "can't be aggregated by ema; allowed: last, mean",
        ),
    ],
)
def test_what_can_not_be_fitted_is_one_message(lab: Path, tmp_path: Path, words: tuple[str, ...], told: str):
    top = tmp_path / "topk"
    shutil.copytree(lab / "monitors/saes/mine", top)
    config = json.loads((top / "cfg.json").read_text())
    (top / "cfg.json").write_text(json.dumps({**config, "architecture": "topk", "k": 8}))
    weights = top / "sae_weights.safetensors"
    save_file({k: v for k, v in load_file(weights).items() if k != "threshold"}, weights)
    places = {"SAE": lab / "monitors/saes/mine", "TOPK": top}
    done = interlock(
        "monitor", "fit", "--name", "x", "--data", lab / "train.jsonl", "--out", lab / "monitors/x",
        "--cache", lab / "acts", "--layers", 2, *(places.get(word, word) for word in words),
    )  # fmt: skip
    assert (done.exit_code, "Traceback" in done.output) == (2, False)
    assert told in " ".join(done.output.split())


def test_a_condition_of_cast_becomes_a_monitor(lab: Path, tmp_path: Path):
    file = tmp_path / "animals.svec"
    direction = torch.randn(256, generator=torch.Generator().manual_seed(0)).tolist()
    file.write_text(
        json.dumps({"model_type": "x", "directions": {"3": direction}, "explained_variances": {}})
    )
    words = ("monitor", "import", file, "--out", lab / "monitors/cast", "--threshold-is", "larger")
    done = interlock(*words, "--layer", 3)
    assert done.exit_code == 0, done.output
    written = json.loads((lab / "monitors/cast/monitor.json").read_text())
    assert (written["kind"], written["hook_points"]) == ("condition_mean", ["blocks.3.hook_resid_pre"])
    assert load_monitor(lab / "monitors/cast", identity(written)).transform.sign == -1
    refused = interlock(*words, "--layer", 2)
    assert (refused.exit_code, "has no layer 2; it has 3" in refused.output) == (2, True)
