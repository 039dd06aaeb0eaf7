"""`interlock sae …`: what a user sees."""

import torch
from typer.testing import CliRunner

from server.cli import app


def run(*words):
    return CliRunner().invoke(app, ["sae", *map(str, words)])


def test_converting_a_pickle_says_what_comes_next(tmp_path):
    tensors = {
        "encoder_linear.weight": torch.ones(4, 3),
        "encoder_linear.bias": torch.zeros(4),
        "decoder_linear.weight": torch.ones(3, 4),
        "decoder_linear.bias": torch.zeros(3),
    }
    torch.save(tensors, tmp_path / "sae.pth")
    words = (tmp_path / "sae.pth", tmp_path / "out", "--format", "goodfire")
    refused = run("convert", *words)
    assert refused.exit_code == 2
    assert "give --hook-point blocks.<layer>.hook_resid_post" in refused.stderr
    result = run("convert", *words, "--hook-point", "blocks.19.hook_resid_post")
    assert result.exit_code == 0, result.output
    assert "4 features at blocks.19.hook_resid_post" in result.stdout
    assert f"next: interlock sae check {tmp_path / 'out'} --format goodfire" in result.stdout


def test_mistakes_are_one_message_with_exit_code_2(tmp_path):
    (tmp_path / "plain.txt").write_text("one\ntwo\n")
    (tmp_path / "sae").mkdir()
    data = ("--data", tmp_path / "plain.txt")
    for words, message in (
        (("check", tmp_path / "sae", "--format", "mine", *data), "unknown SAE format 'mine'"),
        (("check", tmp_path / "sae", *data), "not a SAELens config"),
        (("fit", "--layer", "blocks.1.mlp", "--out", tmp_path / "new", *data), "unknown hook point"),
        (("fit", "--layer", "blocks.1.hook_resid_post", "--out", tmp_path / "sae", *data), "exists already"),
        (
            ("fit", "--layer", "blocks.1.hook_resid_post", "--kind", "x", "--out", tmp_path / "new", *data),
            "known are batchtopk, jumprelu",
        ),
    ):
        result = run(*words)
        assert (result.exit_code, message in result.stderr) == (2, True), result.output
        assert "Traceback" not in result.output
