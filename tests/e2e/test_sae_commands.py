"""`interlock sae fit | check | features | convert` on the demo model, with real files; and each kind of bad input."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.e2e.test_lab import interlock, write

_ANIMALS = ("owls", "bees", "cows", "frogs", "otters", "geese", "foxes", "moles")
_PLANTS = ("roses", "tulips", "ferns", "basil", "garlic", "onions", "pansies", "mint")
_LAYER = "blocks.2.hook_resid_post"
_WAIT_S = 300.0

Spoil = Callable[[Path], None]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain text, labelled conversations, and an SAE in a monitors folder, with a monitor of its features."""
    folder = tmp_path_factory.mktemp("sae")
    lines = [
        f"We saw {a} near the {p}, {how}."
        for a, p, how in product(_ANIMALS, _PLANTS, ("twice", "and left", "I think"))
    ]
    (folder / "plain.txt").write_text("\n".join(lines) + "\n")
    write(folder / "train.jsonl", (*((name, 1) for name in _ANIMALS), *((name, 0) for name in _PLANTS)))
    done = interlock(*fit_words(folder), "--out", folder / "monitors/saes/mine")
    assert done.exit_code == 0, done.output
    assert "next: interlock sae check" in done.output
    made = interlock(
        "monitor", "fit", "--name", "animals", "--data", folder / "train.jsonl", "--out", folder / "monitors/animals",
        "--cache", folder / "acts", "--kind", "sae_features", "--sae", folder / "monitors/saes/mine", "--folds", 2, "--penalty", 1,
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    return folder


def fit_words(folder: Path, *, steps: int = 300) -> list[object]:
    return [
        "sae", "fit", "--data", folder / "plain.txt", "--layer", _LAYER, "--width", 128, "--k", 8, "--steps", steps,
        "--batch", 128, "--cache", folder / "acts",
    ]  # fmt: skip


def printed(output: str, name: str) -> float:
    found = re.search(rf"{re.escape(name)}\s+([\d.]+)", output)
    assert found, output
    return float(found[1])


def copied(place: Path, tmp_path: Path) -> Path:
    """The monitors folder, to be spoiled."""
    return Path(shutil.copytree(place / "monitors", tmp_path / "monitors"))


def check_words(place: Path, sae: Path, *words: object) -> list[object]:
    return ["sae", "check", sae, "--data", place / "plain.txt", "--cache", place / "acts", *words]


def accepted(monitors: Path) -> bool | None:
    evidence: dict[str, bool] = json.loads((monitors / "animals/monitor.json").read_text())["evidence"]
    return evidence.get("accepted")


def test_fit_writes_what_check_accepts_and_features_describes(place: Path, tmp_path: Path):
    monitors = copied(place, tmp_path)
    sae = monitors / "saes/mine"
    assert {path.name for path in sae.iterdir()} == {
        "cfg.json",
        "sae_weights.safetensors",
        "sparsity.safetensors",
    }
    assert accepted(monitors) is None
    done = interlock(*check_words(place, sae, "--published-l0", 8, "--monitor", monitors / "animals"))
    assert done.exit_code == 0, done.output
    result = json.loads((sae / "acceptance.json").read_text())
    assert (result["accepted"], result["hook_point"], result["published_l0"]) == (True, _LAYER, 8)
    assert result["num_tokens"] >= 2000
    assert printed(done.output, "active features per token (L0)") == pytest.approx(result["l0"], rel=1e-3)
    assert accepted(monitors) is True

    done = interlock(
        "sae", "features", sae, "--data", place / "train.jsonl", "--cache", place / "acts", "--top", 3
    )
    assert done.exit_code == 0, done.output
    found = json.loads((sae / "features.json").read_text())["features"]
    assert len(found) == int(re.search(r"(\d+) of 128 features were active", done.output)[1])
    assert all(0 <= one["auroc"] <= 1 for one in found)
    assert max(one["auroc"] for one in found) > 0.6
    assert "it holds text of the data" in done.output
    assert any(name in (sae / "features.json").read_text() for name in _ANIMALS)
    quiet = tmp_path / "quiet.json"
    done = interlock(
        "sae", "features", sae, "--data", place / "train.jsonl", "--cache", place / "acts", "--top", 0, "--out", quiet
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert not any(name in quiet.read_text() for name in (*_ANIMALS, *_PLANTS))


def rewritten(sae: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(sae / "sae_weights.safetensors")
    change(tensors)
    save_file(tensors, sae / "sae_weights.safetensors")


def configured(sae: Path, **changed: object) -> None:
    config = json.loads((sae / "cfg.json").read_text())
    (sae / "cfg.json").write_text(json.dumps(config | changed))


def test_an_sae_that_reads_with_a_wrong_formula_is_not_accepted_and_the_mistake_is_named(
    place: Path, tmp_path: Path
):
    monitors = copied(place, tmp_path)
    sae = monitors / "saes/mine"
    right = interlock(*check_words(place, sae))
    assert right.exit_code == 0, right.output
    published = printed(right.output, "active features per token (L0)")
    configured(sae, normalize_activations="layer_norm")
    done = interlock(*check_words(place, sae, "--published-l0", published))
    assert done.exit_code == 1, done.output
    assert "not accepted:" in done.output
    assert "it would pass if: it was trained with no normalisation of the input" in done.output
    result = json.loads((sae / "acceptance.json").read_text())
    assert result["accepted"] is False
    assert result["suspects"]


def test_a_monitor_of_an_sae_that_is_not_accepted_is_told_so(place: Path, tmp_path: Path):
    monitors = copied(place, tmp_path)
    words = ("--published-l0", 100, "--monitor", monitors / "animals")
    done = interlock(*check_words(place, monitors / "saes/mine", *words))
    assert done.exit_code == 1, done.output
    assert "published are 100" in done.output
    assert accepted(monitors) is False


def test_a_killed_training_goes_on_to_the_same_result(place: Path, tmp_path: Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    small = ("--width", 32, "--k", 4, "--batch", 32)
    words = [*fit_words(place, steps=900), *small]
    done = interlock(*words, "--out", whole)
    assert done.exit_code == 0, done.output
    command = [
        sys.executable,
        "-c",
        "from server.cli import main; main()",
        *map(str, words),
        "--out",
        str(killed),
    ]
    checkpoint = tmp_path / "killed.training.safetensors"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:  # noqa: S603  our own command
        until = time.monotonic() + _WAIT_S
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        process.kill()
    assert process.returncode in {0, -signal.SIGKILL}
    if checkpoint.exists():
        other = interlock(*fit_words(place, steps=600), *small, "--out", killed)
        assert other.exit_code == 2
        assert f"{checkpoint}: a training with other settings or data; delete it" in other.output
        done = interlock(*words, "--out", killed)
        assert done.exit_code == 0, done.output
    assert not checkpoint.exists()
    first, second = (load_file(folder / "sae_weights.safetensors") for folder in (whole, killed))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-4, atol=1e-5)


def as_goodfire(place: Path, path: Path) -> Path:
    """The SAE's weights in the pickle of another project, b_dec folded into the encoder's bias."""
    own = load_file(place / "monitors/saes/mine/sae_weights.safetensors")
    held = {
        "encoder_linear.weight": own["W_enc"].T.contiguous(),
        "encoder_linear.bias": own["b_enc"] - own["b_dec"] @ own["W_enc"],
        "decoder_linear.weight": own["W_dec"].T.contiguous(),
        "decoder_linear.bias": own["b_dec"],
    }
    torch.save(held, path)
    return path


def test_a_pickle_is_converted_and_then_checked_like_any_other(place: Path, tmp_path: Path):
    pickle, out = as_goodfire(place, tmp_path / "sae.pth"), tmp_path / "out"
    done = interlock("sae", "convert", pickle, out, "--format", "goodfire", "--hook-point", _LAYER)
    assert done.exit_code == 0, done.output
    assert {path.name for path in out.iterdir()} == {"config.json", "sae.safetensors"}
    done = interlock(*check_words(place, out, "--format", "goodfire"))
    assert done.exit_code == 0, done.output
    again = interlock("sae", "convert", pickle, out, "--format", "goodfire", "--hook-point", _LAYER)
    assert (again.exit_code, f"{out}: exists already" in again.output) == (2, True)


def _not_json(sae: Path) -> None:
    (sae / "cfg.json").write_text("{")


def _cut_short(sae: Path) -> None:
    path = sae / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def _beside_a_pickle(sae: Path) -> None:
    torch.save({"a": torch.zeros(1)}, sae / "old.pt")


def _for_another_model(sae: Path) -> None:
    rewritten(
        sae,
        lambda w: w.update(
            {
                "W_enc": w["W_enc"][:32].clone(),
                "W_dec": w["W_dec"][:, :32].clone(),
                "b_dec": w["b_dec"][:32].clone(),
            }
        ),
    )
    configured(sae, d_in=32)


SPOILT: dict[str, tuple[Spoil, str]] = {
    "no config": (lambda sae: (sae / "cfg.json").unlink(), "cfg.json"),
    "a config that isn't JSON": (_not_json, "cfg.json: not a SAELens config"),
    "an unknown architecture": (
        lambda sae: configured(sae, architecture="novel"),
        "unknown architecture 'novel'; known: standard",
    ),
    "no weights": (lambda sae: (sae / "sae_weights.safetensors").unlink(), "sae_weights.safetensors"),
    "weights cut short": (_cut_short, "sae_weights.safetensors: not a safetensors file"),
    "a tensor missing": (
        lambda sae: rewritten(sae, lambda w: w.pop("b_enc")),
        "sae_weights.safetensors: needs W_dec, W_enc, b_dec, b_enc, threshold",
    ),
    "numbers that aren't finite": (
        lambda sae: rewritten(sae, lambda w: w["W_enc"].fill_(torch.nan)),
        "W_enc holds NaN or infinity",
    ),
    "a pickle beside it": (_beside_a_pickle, "old.pt: pickle can execute code; convert it"),
    "a layer that the model lacks": (
        lambda sae: configured(sae, metadata={"hook_name": "blocks.40.hook_resid_post"}),
        "the SAE reads block 40; model has blocks 0 to 5: give the model that it was trained on, with --model",
    ),
    "another model's width": (
        _for_another_model,
        "the SAE is for d_model 32; model has 256: give the model that it was trained on, with --model",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
@pytest.mark.parametrize("command", ["check", "features"])
def test_a_spoilt_sae_is_one_message_that_names_the_file(
    place: Path, tmp_path: Path, command: str, name: str
):
    spoil, told = SPOILT[name]
    sae = Path(shutil.copytree(place / "monitors/saes/mine", tmp_path / "mine"))
    spoil(sae)
    done = interlock("sae", command, sae, "--data", place / "plain.txt", "--cache", place / "acts")
    assert (done.exit_code, "Traceback" in done.output) == (2, False), done.output
    assert told in done.output
    assert str(sae) in done.output or "with --model" in done.output
    assert not (sae / "acceptance.json").exists()
    assert not (sae / "features.json").exists()


DATA: dict[str, tuple[str, bytes, str]] = {
    "nothing in it": ("empty.txt", b"\n \n", "empty.txt: no text"),
    "another format": ("text.pdf", b"%PDF", "text.pdf: can't tell its format; give a .jsonl or a .csv file"),
    "not UTF-8": ("latin.txt", "Müller".encode("latin-1"), "latin.txt: not UTF-8 text; save it as UTF-8"),
    "JSON lines that aren't UTF-8": ("latin.jsonl", b'{"text": "\xe9"}\n', "latin.jsonl: not UTF-8 text"),
    "CSV with a field without end": ("open.csv", b'text\n"' + b"x" * 200_000 + b"\n", "open.csv: not CSV"),
    "not JSON": ("bad.jsonl", b'{"text": "a"}\n{"text"\n', "bad.jsonl:2: not JSON"),
    "no text field": ("other.csv", b"prompt,label\nhello,1\n", "no column 'text'; the file has prompt, label"),
}  # fmt: skip


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("command", ["check", "features", "fit"])
def test_data_that_can_not_be_read_is_one_message_that_names_the_file(
    place: Path, tmp_path: Path, command: str, name: str
):
    file, content, told = DATA[name]
    (tmp_path / file).write_bytes(content)
    out = tmp_path / "out"
    own = ("--layer", _LAYER, "--out", out) if command == "fit" else (place / "monitors/saes/mine",)
    done = interlock("sae", command, *own, "--data", tmp_path / file, "--cache", place / "acts")
    assert (done.exit_code, "Traceback" in done.output) == (2, False), done.output
    assert told in done.output
    assert not out.exists()


def test_too_little_text_to_judge_by_is_told(place: Path, tmp_path: Path):
    (tmp_path / "short.txt").write_text("We saw owls.\n" * 5)
    sae = Path(shutil.copytree(place / "monitors/saes/mine", tmp_path / "mine"))
    done = interlock("sae", "check", sae, "--data", tmp_path / "short.txt", "--cache", place / "acts")
    assert done.exit_code == 2
    assert "tokens of plain text; needs 2,000 or more" in done.output
    done = interlock(
        "sae", "fit", "--layer", _LAYER, "--out", tmp_path / "out", "--data", tmp_path / "short.txt", "--cache", place / "acts"
    )  # fmt: skip
    assert done.exit_code == 2
    assert "tokens to train on; needs 100 at the very least" in done.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--width", "x8"), "--width 'x8': a number of features such as 4096, or a factor such as 8x"),
        (("--width", 8, "--k", 8), "k is 8; must be above 0 and below the width, 8"),
        (("--layer", "blocks.9.hook_resid_post"), "the SAE reads block 9; model has blocks 0 to 5"),
        (("--layer", "blocks.1.mlp"), "unknown hook point 'blocks.1.mlp'"),
        (("--kind", "topk"), "--kind 'topk': known are batchtopk, jumprelu"),
        (("--learning-rate", 0), "learning rate must be above 0"),
        (("--model", "no/such/model"), "can't read a model's config from 'no/such/model'"),
    ],
)
def test_what_can_not_be_fitted_is_one_message(
    place: Path, tmp_path: Path, words: tuple[object, ...], told: str
):
    done = interlock(*fit_words(place), "--out", tmp_path / "out", *words)
    assert (done.exit_code, "Traceback" in done.output) == (2, False), done.output
    assert told in done.output
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_damaged_is_named(place: Path, tmp_path: Path):
    checkpoint = tmp_path / "out.training.safetensors"
    checkpoint.write_bytes(b"half of one")
    done = interlock(*fit_words(place), "--out", tmp_path / "out")
    assert (done.exit_code, "Traceback" in done.output) == (2, False), done.output
    assert f"{checkpoint}: not a checkpoint" in done.output
    assert "delete it" in done.output


@pytest.mark.parametrize(
    ("content", "words", "told"),
    [
        (b"no pickle at all", ("--format", "goodfire", "--hook-point", _LAYER), "sae.pth"),
        (None, ("--format", "goodfire"), "give --hook-point blocks.<layer>.hook_resid_post"),
        (None, ("--format", "goodfire", "--hook-point", "blocks.1.mlp"), "unknown hook point 'blocks.1.mlp'"),
        (
            None,
            ("--format", "saelens"),
            "format 'saelens' needs no conversion; these do: dictionary_learning",
        ),
        (
            None,
            ("--format", "dictionary_learning"),
            "sae.pth: refused: 'encoder_linear.weight' (Tensor) is no part of this format",
        ),
        (
            None,
            ("--format", "qwen_scope", "--hook-point", _LAYER, "--k", 4),
            "is no part of this format",
        ),
    ],
)
def test_what_can_not_be_converted_is_one_message(
    place: Path, tmp_path: Path, content: bytes | None, words: tuple[object, ...], told: str
):
    pickle = as_goodfire(place, tmp_path / "sae.pth")
    if content is not None:
        pickle.write_bytes(content)
    done = interlock("sae", "convert", pickle, tmp_path / "out", *words)
    assert (done.exit_code, "Traceback" in done.output) == (2, False), done.output
    assert told in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["sae.pth"]
