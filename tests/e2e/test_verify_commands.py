"""`interlock monitor verify`, `interlock vector fit` and `interlock vector verify` on the demo model, with mild data."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from server.cli import app

_ANIMALS = ("owls", "bees", "cows", "frogs", "geese", "foxes")
_PLANTS = ("roses", "tulips", "ferns", "basil", "onions", "mint")
_ASKS = ("What about {}?", "Tell me about {}.", "I like {}.", "Do you know {}?")


def interlock(*words: object) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a monitor that was fitted on it."""
    folder = tmp_path_factory.mktemp("lab")
    lines = [
        {"messages": [{"role": "user", "content": ask.format(name)}], "label": label, "group": name}
        for names, label in ((_ANIMALS, 1), (_PLANTS, 0))
        for name in names
        for ask in _ASKS
    ]
    for line in lines:
        line["asked"] = int(line["messages"][0]["content"].endswith("?"))  # a concept that crosses the other
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, label in (("animals", "label"), ("questions", "asked")):
        done = interlock(
            "monitor", "fit", "--name", name, "--data", folder / "data.jsonl", "--label-field", label, "--out", folder / name,
            "--cache", folder / "acts", "--layers", 2, "--aggregator", "mean", "--penalty", 1, "--folds", 2, "--exclude-first", 1,
        )  # fmt: skip
        assert done.exit_code == 0, done.output
    return folder


def test_verify_writes_the_verdict_and_its_reasons(lab: Path):
    done = interlock(
        "monitor", "verify", lab / "animals", "--data", lab / "data.jsonl", "--cache", lab / "acts",
        "--behaviour", "tokens:I|The",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    monitor = json.loads((lab / "animals/monitor.json").read_text())
    card = json.loads((lab / "animals/card.json").read_text())
    assert monitor["evidence"]["verdict"] == card["causal"]["verdict"]
    assert monitor["weights_sha256"] == card["causal"]["weights_sha256"]
    assert card["fit"] is not None
    assert card["causal"]["behaviour"] == "tokens:I|The"
    assert "sequences will be run through the model" in done.output
    for reason in card["causal"]["reasons"]:
        assert reason in done.output


def test_verify_looks_at_other_concepts_later_layers_and_other_words(lab: Path):
    """Each class is told to say what the other isn't, so that behaviour differs whatever the model is."""
    lines = list(map(json.loads, (lab / "data.jsonl").read_text().splitlines()))
    for line in lines:
        likely, unlikely = ("positive", "negative")[:: 1 if line["label"] else -1]
        line["tags"] = {f"continuation_{likely}": "The", f"continuation_{unlikely}": "zq zq zq"}
    (lab / "told.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = interlock(
        "monitor", "verify", lab / "animals", "--data", lab / "told.jsonl", "--cache", lab / "acts",
        "--behaviour", "continuations", "--unrelated", lab / "questions", "--paraphrased", lab / "data.jsonl",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads((lab / "animals/card.json").read_text())["causal"]
    assert found["read"]["paraphrased_auroc"] is not None
    assert [part["name"] for part in found["others"]] == ["paraphrased"]
    assert [other["monitor"] for other in found["unrelated"]] == ["questions"]
    assert found["unrelated"][0]["moved"] is not None
    assert [one["position"] for one in found["positions"]] == ["last", "random"]
    assert [one["hook_point"] for one in found["downstream"]] == ["blocks.5.hook_resid_post"]
    for told in ("towards questions", "random token alone", "fitted anew"):
        assert told in done.output


def test_without_behaviour_verify_says_not_tested(lab: Path):
    done = interlock(
        "monitor", "verify", lab / "animals", "--data", lab / "data.jsonl", "--cache", lab / "acts"
    )
    assert done.exit_code == 0, done.output
    assert "not tested" in done.output


@pytest.mark.parametrize("method", ["caa", "ace"])
def test_a_vector_is_fitted_and_verified(lab: Path, method: str):
    vector = lab / method
    done = interlock(
        "vector", "fit", "--name", "animal", "--data", lab / "data.jsonl", "--method", method, "--layers", 2,
        "--out", vector, "--cache", lab / "acts",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    done = interlock(
        "vector", "verify", vector, "--data", lab / "data.jsonl", "--cache", lab / "acts", "--behaviour", "tokens:I|The",
        "--tokens", "last" if method == "caa" else "mean", "--unrelated", lab / "questions",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    file, card = (json.loads((vector / name).read_text()) for name in ("vector.json", "card.json"))
    assert file["operation"] == {"caa": "add", "ace": "affine"}[method]
    assert file["evidence"]["verdict"] == card["causal"]["verdict"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("monitor", "verify", "animals", "--behaviour", "magic"), "behaviour 'magic': write tokens:Sorry"),
        (("monitor", "verify", "animals", "--behaviour", "continuations"), "no tag 'continuation_positive'"),
        (
            ("monitor", "verify", "animals", "--unrelated", "animals"),
            "that is what is verified; name monitors of other",
        ),
        (("monitor", "verify", "animals", "--phase", "later"), "must be prompt or response"),
        (("vector", "fit", "--name", "v", "--method", "pca"), "must be caa, mass_mean or ace"),
        (("vector", "fit", "--name", "v", "--layers", "9"), "the model has layers 0 to 5"),
    ],
)
def test_what_cannot_work_is_told_in_one_message(lab: Path, words: tuple[str, ...], told: str):
    full = [lab / word if word == "animals" else word for word in words]
    done = interlock(*full, "--data", lab / "data.jsonl", "--cache", lab / "acts")
    assert done.exit_code == 2
    assert told in done.output
    assert "Traceback" not in done.output
