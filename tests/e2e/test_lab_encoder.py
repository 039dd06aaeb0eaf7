"""Fitting on an encoder, from a CSV file with columns of its own: measured, and said to be no monitor for a server."""

import csv
import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel
from typer.testing import CliRunner, Result

from server.cli import app
from tests.tiny_models import VOCAB_SIZE
from tests.tiny_tokenizer import tiny_tokenizer


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    BertModel(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write(path: Path, *, repeats: bool = False) -> Path:
    """Questions about owls and about bees."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt", "about", "topic"])
        for i in range(24):
            about = ("owls", "bees")[i % 2]
            ask = ("do {} sleep", "tell me of {}", "what are {}")[i // 2 % 3].format(about)
            rows.writerow([ask if repeats else f"{ask} {'abcdefghijkl'[i // 2]}", about, f"topic{i // 2}"])
    return path


def fit(encoder: Path, data: Path, folder: Path, *words: str) -> Result:
    command = [
        "monitor", "fit", "--name", "owls", "--model", encoder, "--data", data, "--text-field", "prompt", "--label-field", "about",
        "--positive", "owls", "--group-field", "topic", "--folds", "3", "--out", folder / "owls", "--cache", folder / "acts", *words,
    ]  # fmt: skip
    return CliRunner().invoke(app, list(map(str, command)))


def test_an_encoder_is_measured_by_its_last_score_and_not_to_be_served(encoder: Path, tmp_path: Path):
    done = fit(encoder, write(tmp_path / "data.csv"), tmp_path, "--kind", "all-linear", "--penalty", "1")
    assert done.exit_code == 0, done.output
    assert "the monitor can be measured, but not served" in done.output
    section = json.loads((tmp_path / "owls/card.json").read_text())["fit"]
    assert (section["statistic"], section["num_groups"], section["num_repeated"]) == ("last", 12, 0)
    assert len(section["candidates"]) == 4 * 2 + 1  # four kinds on two layers, one on both at once
    assert {c["recipe"]["aggregator"]["kind"] for c in section["candidates"]} == {"mean"}
    assert max(c["auroc"]["value"] for c in section["candidates"]) > 0.9


def test_a_second_run_computes_no_activations_and_no_folds(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = write(tmp_path / "data.csv")
    first = fit(encoder, data, tmp_path)
    assert first.exit_code == 0, first.output
    card = (tmp_path / "owls/card.json").read_bytes()

    def refuse(*args: object, **rest: object) -> None:
        raise AssertionError("computed anew")

    monkeypatch.setattr(BertModel, "forward", refuse)
    monkeypatch.setattr("monitors.lab.sweep.fit", refuse)
    second = fit(encoder, data, tmp_path)
    assert second.exit_code == 0, second.output
    assert (tmp_path / "owls/card.json").read_bytes() == card


def test_texts_that_stand_in_several_groups_are_warned_of(encoder: Path, tmp_path: Path):
    done = fit(encoder, write(tmp_path / "data.csv", repeats=True), tmp_path, "--layers", "1")
    assert done.exit_code == 0, done.output
    assert "24 examples have the same text as one of another group" in " ".join(done.output.split())
