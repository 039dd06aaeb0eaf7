"""The lab's commands, one after the other, on the demo model with mild data."""

import asyncio
import json
import re
import shutil
from pathlib import Path

import openai
import pytest
from typer.testing import CliRunner, Result

from monitors.artifacts import ModelIdentity, load_monitor
from server.assemble import assemble
from server.cli import app
from server.config import ServerConfig
from tests.e2e.conftest import running

_ANIMALS = ("owls", "bees", "cows", "frogs", "otters", "geese", "foxes", "moles")
_PLANTS = ("roses", "tulips", "ferns", "basil", "garlic", "onions", "pansies", "mint")
_ASKS = ("What about {}?", "Tell me about {}.", "I like {}.", "Do you know {}?")


def write(path: Path, subjects: tuple[tuple[str, int], ...], asks: tuple[str, ...] = _ASKS) -> Path:
    """One conversation per subject and wording; a subject is a group."""
    lines = [
        {"messages": [{"role": "user", "content": ask.format(name)}], "label": label, "group": name}
        for name, label in subjects
        for ask in asks
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def interlock(*words: object) -> Result:
    return CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": "160"})


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, and a monitor that was fitted on it: does the user ask about animals or about plants?"""
    folder = tmp_path_factory.mktemp("lab")
    subjects = tuple((name, 1) for name in _ANIMALS) + tuple((name, 0) for name in _PLANTS)
    data = write(folder / "train.jsonl", subjects)
    done = interlock(
        "monitor", "fit", "--name", "animals", "--data", data, "--out", folder / "animals", "--cache", folder / "acts",
        "--layers", 1, "--layers", 2, "--aggregator", "mean", "--penalty", 1,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder


def test_fit_writes_a_monitor_with_the_figures_that_it_was_chosen_by(lab: Path):
    monitor = json.loads((lab / "animals/monitor.json").read_text())
    fit = json.loads((lab / "animals/card.json").read_text())["fit"]
    assert (monitor["name"], monitor["kind"], monitor["link"]) == ("animals", "linear", "sigmoid")
    assert monitor["evidence"]["auroc"] == pytest.approx(
        max(c["auroc"]["value"] for c in fit["candidates"]), abs=1e-4
    )
    assert monitor["weights_sha256"] == fit["weights_sha256"]
    assert (fit["num_examples"], fit["num_groups"], len(fit["candidates"]), len(fit["random"])) == (
        64,
        16,
        2,
        2,
    )


@pytest.mark.parametrize(
    ("kind", "made", "run", "train"),
    [
        ("attention", "attention", {"kind": "attention"}, None),
        (
            "rolling_attention",
            "attention",
            {"kind": "rolling_attention", "window": 10},
            {"kind": "attention"},
        ),
        ("multimax", "multimax", {"kind": "max"}, {"kind": "softmax", "temperature": 5.0}),
    ],
)
def test_a_probe_that_looks_for_the_tokens_that_matter_goes_all_the_way(
    lab: Path, kind: str, made: str, run: dict, train: dict | None
):
    folder, shared = lab / kind, ("--data", lab / "train.jsonl", "--cache", lab / "acts")
    for words in (
        ("fit", "--name", kind, "--out", folder, "--layers", 2, "--kind", kind, "--folds", 2, *shared),
        ("verify", folder, *shared),
    ):
        done = interlock("monitor", *words)
        assert done.exit_code == 0, done.output
    file = json.loads((folder / "monitor.json").read_text())
    assert (file["kind"], file["aggregator"]["run"], file["aggregator"].get("train")) == (made, run, train)
    assert load_monitor(
        folder, ModelIdentity(file["model"]["fingerprint"], file["model"]["d_model"], 6)
    ).evidence


def test_the_report_of_a_fitted_monitor_says_what_is_missing(lab: Path):
    done = interlock("monitor", "report", lab / "animals", "--out", lab / "page.html")
    assert done.exit_code == 0, done.output
    assert "May log and annotate." in done.output
    assert "verify: missing; run: interlock monitor verify" in done.output
    assert "AUROC by layer" in (lab / "page.html").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--layers", "9"), "the model has layers 0 to 5"),
        (("--kind", "magic"), "unknown kind 'magic'; known: logistic"),
        (("--aggregator", "ema:2"), "alpha is 2"),
        (("--kind", "attention", "--aggregator", "mean"), "allowed: attention, rolling_attention. Leave"),
        (("--aggregator", "rolling_attention:10"), "'logistic' can't be aggregated by rolling_attention"),
        (("--aggregator", "median"), "unknown aggregator 'median'"),
        (("--phase", "both"), "must be prompt or response"),
        (("--phase", "response"), "has no token in the response"),
        (("--label-field", "topic"), "64 of 64 examples have no label"),
        (("--positive", "yes"), "none of 64 examples is positive"),
        (("--folds", "9"), "positive examples are of 8 groups"),
        (("--model", "no/such/model"), "can't read a model's config"),
    ],
)
def test_what_fit_can_not_use_is_one_message(lab: Path, words: tuple[str, ...], told: str):
    done = interlock(
        "monitor",
        "fit",
        "--name",
        "x",
        "--data",
        lab / "train.jsonl",
        "--out",
        lab / "x",
        "--cache",
        lab / "acts",
        *words,
    )
    assert done.exit_code == 2, done.output
    assert told in " ".join(done.output.split())
    assert not (lab / "x").exists()


@pytest.fixture(scope="module")
def calibrated(lab: Path) -> Path:
    """The folder of monitors, with thresholds for the one that was fitted."""
    others = ("a film", "the sea", "my shoes", "lunch", "rain", "a song")
    benign = write(lab / "benign.jsonl", tuple((name, 0) for name in (*_PLANTS, *others)))
    fresh = write(lab / "fresh.jsonl", (("bread", 0), ("the moon", 0), ("music", 0), ("owls", 1)))
    done = interlock(
        "monitor", "calibrate", lab / "animals", "--data", benign, "--fpr", "0.2", "--fpr", "0.01", "--check", fresh,
        "--cache", lab / "acts",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    budgets = json.loads((lab / "animals/card.json").read_text())["calibration"]["budgets"]
    assert [(b["certified"], b["num_needed"]) for b in budgets] == [(True, 14), (False, 299)]
    monitors = lab / "monitors"
    monitors.mkdir()
    (lab / "animals").rename(monitors / "animals")
    return monitors


POLICY = """
apiVersion: interlock/v1
kind: Policy
metadata: {{name: animals, version: "1"}}
rules:
  - {{id: no-animals, when: "exceeds(prompt.animals, fpr={fpr})", then: {{block: {{}}}}}}
tests:
  - {{name: animals are blocked, given: {{prompt: {{animals: "1"}}}}, expect: {{action: block}}}}
"""


def test_a_policy_names_the_budget_that_calibration_certified(calibrated: Path, tmp_path: Path):
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY.format(fpr=0.2))
    assert interlock("policy", "test", policy, "--monitors", calibrated).exit_code == 0
    policy.write_text(POLICY.format(fpr=0.01))
    refused = interlock("policy", "check", policy, "--monitors", calibrated)
    assert refused.exit_code == 1
    assert "299" in refused.output


def test_the_calibrated_monitor_guards_a_running_server(calibrated: Path, tmp_path: Path):
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY.format(fpr=0.2))
    config = ServerConfig(policy=policy, monitors=calibrated, audit=None, served_model_name="demo")
    service = assemble(config)
    with running(service, tmp_path / "none") as live:
        checked = service.canary.check(service.policies.in_force.monitors)
        assert asyncio.run_coroutine_threadsafe(checked, live.loop).result(30) == ()
        assert live.chat("Tell me about garlic.", max_tokens=4).choices[0].message.content
        with pytest.raises(openai.BadRequestError) as blocked:
            live.chat("Tell me about otters.", max_tokens=4)
        assert blocked.value.code == "content_filter"


def test_drift_of_a_running_server_is_told_from_the_calibration_that_the_command_wrote(
    calibrated: Path, tmp_path: Path
):
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY.format(fpr=0.2))
    config = ServerConfig(policy=policy, monitors=calibrated, audit=None, served_model_name="demo")
    service = assemble(config)
    with running(service, tmp_path / "none") as live:
        checked = service.canary.check(service.policies.in_force.monitors)
        assert asyncio.run_coroutine_threadsafe(checked, live.loop).result(30) == ()
        live.chat("Tell me about garlic.", max_tokens=2)
        scope = {"monitor": "animals", "scope": "prompt"}
        assert live.metric("interlock_monitor_exceedance_ratio", **scope) == 0
        assert live.metric("interlock_monitor_drift_alarm", **scope, alarm="tail") == 0
        assert abs(live.metric("interlock_residual_norm_shift", hook_point=_hook_point(calibrated))) < 2
        for _ in range(40):
            with pytest.raises(openai.BadRequestError):
                live.chat("Tell me about otters.", max_tokens=2)
        assert live.metric("interlock_monitor_exceedance_ratio", **scope) == pytest.approx(40 / 41)
        assert live.metric("interlock_monitor_drift_alarm", **scope, alarm="tail") == 1


def _hook_point(calibrated: Path) -> str:
    return json.loads((calibrated / "animals/monitor.json").read_text())["calibration"]["row_norms"][0][
        "hook_point"
    ]


def test_calibrating_on_positives_only_is_one_message(lab: Path, calibrated: Path):
    data = write(lab / "positives.jsonl", (("owls", 1),))
    done = interlock("monitor", "calibrate", calibrated / "animals", "--data", data, "--cache", lab / "acts")
    assert done.exit_code == 2
    assert "none of 4 examples is labelled benign" in " ".join(done.output.split())


def test_eval_measures_on_other_examples_and_keeps_the_figures(calibrated: Path, lab: Path):
    data = write(
        lab / "test.jsonl",
        tuple((n, int(n in _ANIMALS)) for n in (*_ANIMALS, *_PLANTS)),
        ("Any news of {}?",),
    )
    done = interlock(
        "monitor", "eval", calibrated / "animals", "--data", data, "--train", lab / "train.jsonl", "--cache", lab / "acts"
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    card = json.loads((calibrated / "animals/card.json").read_text())
    found = card["evaluation"]["whole"]
    monitor = json.loads((calibrated / "animals/monitor.json").read_text())
    assert monitor["evidence"]["auroc"] == pytest.approx(found["monitor"]["auroc"]["value"], abs=1e-4)
    assert monitor["calibration"]
    assert (found["num_positive"], found["random"]["num_directions"]) == (8, 40)
    assert card["evaluation"]["probability"]["method"] == "platt"
    assert "as probabilities (platt, out of fold): Brier score" in done.output
    assert card["fit"]
    assert card["calibration"]


def test_inspect_needs_no_model_and_says_what_the_monitor_may_be_used_for(calibrated: Path):
    done = interlock("monitor", "inspect", calibrated / "animals", "--model", "no/such/model")
    assert done.exit_code == 0, done.output
    assert "prompt at 20.00%: above" in done.output
    assert "may      block: false positives are certified at 20.00% of prompts" in done.output
    assert "missing  verify: interlock monitor verify" in done.output


def test_inspect_scores_one_example_token_by_token(calibrated: Path, lab: Path):
    data = lab / "train.jsonl"
    done = interlock(
        "monitor",
        "inspect",
        calibrated / "animals",
        "--data",
        data,
        "--example",
        "train:1",
        "--cache",
        lab / "acts",
    )
    assert done.exit_code == 0, done.output
    assert "first at token" in done.output
    assert "'?'" in done.output
    told = re.search(
        r"positive with a probability of ([\d.]+)%, where ([\d.]+)% of requests are", done.output
    )
    rare = interlock(
        "monitor", "inspect", calibrated / "animals", "--data", data, "--example", "train:1", "--cache", lab / "acts",
        "--base-rate", 0.001,
    )  # fmt: skip
    less = re.search(r"positive with a probability of ([\d.]+)%, where 0.10% of requests are", rare.output)
    assert told
    assert less
    assert float(less[1]) < float(told[1])
    unknown = interlock("monitor", "inspect", calibrated / "animals", "--data", data, "--example", "nobody")
    assert unknown.exit_code == 2
    assert "no example has the id 'nobody'" in unknown.output


def copied(calibrated: Path, tmp_path: Path) -> Path:
    """The monitor in a folder of its own, to be calibrated anew."""
    return Path(shutil.copytree(calibrated / "animals", tmp_path / "animals"))


def replies(path: Path, subject: str, said: str, num: int = 40) -> Path:
    lines = [
        {"messages": [{"role": "user", "content": f"{subject} {i}"}], "reply": f"{said} {i}", "label": 0}
        for i in range(num)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_fresh_requests_above_their_budget_are_told_phase_by_phase(
    calibrated: Path, lab: Path, tmp_path: Path
):
    done = interlock(
        "monitor", "calibrate", copied(calibrated, tmp_path), "--fpr", "0.2", "--cache", lab / "acts",
        "--data", replies(tmp_path / "a.jsonl", "I like roses", "Nice."),
        "--check", replies(tmp_path / "b.jsonl", "I like owls", "Nice."),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    tables = dict(zip(("prompt", "response"), done.output.split("confidence 95%")[1:], strict=False))
    assert "ABOVE THE BUDGET" in tables["prompt"]
    assert "the budget" in tables["response"].lower()


def test_checking_on_what_was_calibrated_on_is_refused_and_changes_nothing(calibrated: Path, tmp_path: Path):
    folder, data = copied(calibrated, tmp_path), replies(tmp_path / "a.jsonl", "I like roses", "Nice.")
    before = (folder / "monitor.json").read_bytes()
    done = interlock("monitor", "calibrate", folder, "--data", data, "--check", data)
    assert done.exit_code == 2
    assert "all 40 fresh examples are also among those to calibrate on" in done.output
    assert (folder / "monitor.json").read_bytes() == before


def phases(folder: Path) -> dict[str, int]:
    """How many requests each phase of a card is calibrated on."""
    section = json.loads((folder / "card.json").read_text())["calibration"]
    return {part["phase"]: part["num_examples"] for part in (section, *section["others"])}


def test_one_call_calibrates_all_phases_and_a_later_one_of_prompts_leaves_the_others(
    calibrated: Path, lab: Path, tmp_path: Path
):
    data = replies(tmp_path / "a.jsonl", "I like roses", "Nice.")
    line = {"messages": [{"role": "user", "content": "I like mint"}], "label": 0}
    data.write_text(data.read_text() + json.dumps(line) + "\n")
    folder = copied(calibrated, tmp_path)
    done = interlock("monitor", "calibrate", folder, "--data", data, "--fpr", "0.2", "--cache", lab / "acts")
    assert done.exit_code == 0, done.output
    assert "1 of 41 examples have no reply" in done.output
    assert phases(folder) == {"prompt": 41, "response": 40, "conversation": 40}
    data = write(tmp_path / "b.jsonl", tuple((name, 0) for name in _PLANTS))
    words = ("monitor", "calibrate", folder, "--data", data, "--cache", lab / "acts", "--unit", "request")
    done = interlock(*words)
    assert done.exit_code == 0, done.output
    assert "the response stays as it was calibrated before" in done.output
    assert phases(folder) == {"prompt": 32, "response": 40, "conversation": 40}
    thresholds = json.loads((folder / "monitor.json").read_text())["calibration"]["thresholds"]
    assert {(t["phase"], t["num_requests"]) for t in thresholds} == set(phases(folder).items())
    inspected = interlock("monitor", "inspect", folder)
    assert "certified by 40 benign requests" in inspected.output
    page = interlock("monitor", "report", folder)
    assert page.exit_code == 0, page.output
    assert all(f"Budgets, {phase}" in (folder / "card.html").read_text() for phase in phases(folder))
    refused = interlock(*words, "--confidence", "0.9")
    assert refused.exit_code == 2
    assert "was calibrated with confidence 0.95, not 0.9" in refused.output


def test_one_request_of_each_group_counts_for_the_certificate(calibrated: Path, lab: Path, tmp_path: Path):
    data = write(tmp_path / "a.jsonl", tuple((name, 0) for name in _PLANTS))
    folder = copied(calibrated, tmp_path)
    words = ("monitor", "calibrate", folder, "--data", data, "--fpr", "0.2", "--cache", lab / "acts")
    done = interlock(*words)
    assert "8 benign requests, one of each group of 32" in " ".join(done.output.split())
    assert "no: 6 more groups are needed" in " ".join(done.output.split())
    done = interlock(*words, "--unit", "request")
    assert "no:" not in done.output
    refused = interlock(*words, "--unit", "user")
    assert (refused.exit_code, "must be group or request" in refused.output) == (2, True)


def test_a_calibration_that_can_have_no_canary_changes_nothing(calibrated: Path, lab: Path, tmp_path: Path):
    folder = copied(calibrated, tmp_path)
    path = folder / "monitor.json"
    monitor = json.loads(path.read_text())
    monitor["token_scope"]["exclude_first"] = 12
    path.write_text(json.dumps(monitor))
    before = path.read_bytes()
    data = replies(tmp_path / "a.jsonl", "I like roses and tulips and ferns and basil and garlic", "Nice.")
    done = interlock("monitor", "calibrate", folder, "--data", data, "--cache", lab / "acts")
    assert done.exit_code == 2
    assert "canaries of 12 tokens would say nothing" in done.output
    assert path.read_bytes() == before


def test_evaluating_on_the_training_data_is_told(calibrated: Path, lab: Path, tmp_path: Path):
    data = lab / "train.jsonl"
    done = interlock(
        "monitor", "eval", copied(calibrated, tmp_path), "--data", data, "--train", data, "--cache", lab / "acts"
    )  # fmt: skip
    assert "64 of 64 examples are also in the training data" in done.output
    assert "as probabilities" not in done.output


def test_inspect_shows_hostile_ids_and_texts_as_they_are_written(calibrated: Path, lab: Path, tmp_path: Path):
    data = tmp_path / "hostile.jsonl"
    data.write_text(json.dumps({"id": "x[/b]y", "text": "hello \x1b[31mred", "label": 0}) + "\n")
    done = interlock("monitor", "inspect", calibrated / "animals", "--data", data, "--cache", lab / "acts")
    assert done.exit_code == 0, done.output
    assert "prompt of x[/b]y" in done.output
    assert "\x1b" not in done.output


def test_an_assistants_last_message_is_scored_as_the_reply(calibrated: Path, lab: Path, tmp_path: Path):
    ask, said = {"role": "user", "content": "Tell me about owls."}, "They hunt at night."
    outputs = []
    for name, line in (
        ("whole", {"messages": [ask, {"role": "assistant", "content": said}]}),
        ("apart", {"messages": [ask], "reply": said}),
    ):
        data = tmp_path / f"{name}.jsonl"
        data.write_text(json.dumps({"id": "talk", **line}) + "\n")
        done = interlock(
            "monitor", "inspect", calibrated / "animals", "--data", data, "--cache", lab / "acts"
        )
        assert done.exit_code == 0, done.output
        outputs.append(done.output)
    assert "response of talk" in outputs[0]
    assert outputs[0] == outputs[1]
