"""The cache of activations: what it holds is what the model says, and nothing is computed twice."""

import dataclasses
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedModel

from monitors.hook_points import find_layers
from monitors.lab import activations
from monitors.lab.activations import collect
from monitors.lab.dataset import Example
from monitors.lab.subject import Subject, Tokens
from tests.tiny_models import TINY, VOCAB_SIZE


def bert() -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    return BertModel(config).eval()


class Counted(torch.nn.Module):
    """A model that counts its forward passes, and may fail in one."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.num_passes = 0
        self.fails_at: int | None = None

    def forward(self, **inputs: torch.Tensor) -> object:
        self.num_passes += 1
        if self.num_passes == self.fails_at:
            raise KeyboardInterrupt
        return self.model(**inputs)


def subject(model: PreTrainedModel) -> Subject:
    def tokenize(example: Example) -> Tokens:
        ids = tuple(ord(letter) % VOCAB_SIZE for letter in example.text + (example.reply or ""))
        return Tokens(ids, len(example.text))

    return Subject("tiny", Counted(model), find_layers(model), tokenize, fingerprint="0" * 64, max_tokens=20)


def examples(num: int = 10) -> list[Example]:
    return [Example(f"e{i}", text="abcdefgh" * (1 + i % 3) + "x" * i, reply="yes") for i in range(num)]


@pytest.mark.parametrize("build", [TINY["llama"], TINY["gpt2"], bert])
def test_rows_are_the_hidden_states_of_the_example_alone(tmp_path: Path, build):
    model = build().eval()
    it = subject(model)
    acts = collect(it, examples(), it.hook_points, tmp_path)
    for index, its in enumerate(acts.tokens):
        with torch.no_grad():
            states = model(input_ids=torch.tensor([its.ids]), output_hidden_states=True).hidden_states
        for point in it.hook_points[:-1]:  # the last one has the final norm in it
            np.testing.assert_allclose(acts.rows(point, index), states[point.layer + 1][0], atol=2e-5)


def test_a_second_run_asks_the_model_for_nothing(tmp_path: Path):
    it = subject(bert())
    first = collect(it, examples(), it.hook_points, tmp_path)
    num_passes = it.model.num_passes
    assert num_passes
    second = collect(it, examples(), it.hook_points, tmp_path)
    assert it.model.num_passes == num_passes
    assert torch.equal(first.rows(it.hook_points[0], 3), second.rows(it.hook_points[0], 3))


@pytest.mark.parametrize("change", ["text", "model", "tokenizer"])
def test_other_content_is_computed_anew(tmp_path: Path, change: str):
    it = subject(bert())
    first = collect(it, examples(), it.hook_points, tmp_path)
    own = examples()
    match change:
        case "text":
            own[0] = dataclasses.replace(own[0], text="other")
        case "model":
            it = dataclasses.replace(it, fingerprint="1" * 64)
        case _:
            it = dataclasses.replace(it, tokenizer_hash="1" * 64)
    assert collect(it, own, it.hook_points, tmp_path).folder != first.folder


def test_labels_and_groups_are_no_part_of_it(tmp_path: Path):
    it = subject(bert())
    first = collect(it, examples(), it.hook_points, tmp_path)
    own = [dataclasses.replace(e, label=1, group="g") for e in examples()]
    assert collect(it, own, it.hook_points, tmp_path).folder == first.folder


def test_an_interrupted_run_goes_on_with_the_shard_that_it_was_in(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(activations, "SHARD", 4)
    it = subject(bert())
    whole = collect(it, examples(), it.hook_points, tmp_path / "whole")
    assert it.model.num_passes == 3  # one per shard
    it.model.fails_at = 5
    with pytest.raises(KeyboardInterrupt):
        collect(it, examples(), it.hook_points, tmp_path / "broken")
    steps: list[tuple[int, int]] = []
    again = collect(it, examples(), it.hook_points, tmp_path / "broken", progress=lambda *s: steps.append(s))
    assert it.model.num_passes == 7  # the first shard was there
    assert (steps[0], steps[-1]) == ((4, 10), (10, 10))
    for index in range(10):
        for point in it.hook_points:
            assert torch.equal(again.rows(point, index), whole.rows(point, index))


def test_other_layers_of_the_same_examples_are_added_to_those_that_are_there(tmp_path: Path):
    it = subject(bert())
    first, second, third = it.hook_points
    collect(it, examples(), [first, second], tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    num_passes = it.model.num_passes
    acts = collect(it, examples(), [second, third], tmp_path)
    assert it.model.num_passes == 2 * num_passes
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    whole = collect(subject(bert()), examples(), it.hook_points, tmp_path / "whole")
    for index in range(10):
        for point in (second, third):
            assert torch.equal(acts.rows(point, index), whole.rows(point, index))
    collect(it, examples(), [third, first], tmp_path)
    assert it.model.num_passes == 2 * num_passes


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """A disk that takes no more."""
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))


def test_a_full_disk_is_one_message_and_the_next_run_goes_on(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(activations, "SHARD", 5)
    it = subject(bert())
    long = [
        dataclasses.replace(e, text=e.text[:4] if i < 5 else "a" * 17, reply="")
        for i, e in enumerate(examples())
    ]
    with (
        files_of_at_most(5000),
        pytest.raises(OSError, match="make room there or give another --cache") as told,
    ):
        collect(it, long, it.hook_points[:1], tmp_path)
    assert str(tmp_path) in str(told.value)
    assert not list(tmp_path.rglob("*.part"))
    num_passes = it.model.num_passes
    assert num_passes == 2  # the first shard fitted
    acts = collect(it, long, it.hook_points[:1], tmp_path)
    assert it.model.num_passes == num_passes + 1
    assert acts.rows(it.hook_points[0], 9).shape == (17, 32)


def test_long_examples_are_cut_at_the_end(tmp_path: Path):
    it = subject(bert())
    acts = collect(it, [Example("long", text="a" * 30, reply="yes")], it.hook_points, tmp_path)
    assert (len(acts.tokens[0].ids), acts.tokens[0].num_prompt) == (20, 20)
    assert acts.rows(it.hook_points[0], 0).shape == (20, 32)


def test_an_example_without_tokens_is_named(tmp_path: Path):
    it = subject(bert())
    with pytest.raises(ValueError, match="'empty' has no tokens"):
        collect(it, [Example("empty")], it.hook_points, tmp_path)
