"""`interlock monitor verify`: does the model use what the monitor reads?"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.lab import options
from server.lab.causal_card import show
from server.lab.run import progress_bar, told

if TYPE_CHECKING:
    from monitors.base import Monitor
    from monitors.lab.causal import Behaviour, Subjects
    from monitors.lab.dataset import Columns, Example
    from monitors.lab.sections.base import Phase
    from monitors.lab.subject import Subject

Behave = Annotated[
    str | None,
    typer.Option(
        "--behaviour",
        help="What the model does, as a number: `tokens:Sorry|I cannot` (log-odds that the reply starts so), `continuations` "
        "(each example's tags continuation_positive and continuation_negative are compared), or `python:module:function` "
        "(called with the logits at the first response position, and the example). Without: the causal part is not tested.",
    ),
]
Full = Annotated[
    bool,
    typer.Option(
        "--full/--quick",
        help="64 prompts per class and null edits of equal KL, too; or 32 and null edits of equal size only.",
    ),
]
Neutral = Annotated[
    list[Path] | None,
    typer.Option(
        "--neutral",
        help="Text that has nothing to do with the behaviour. Default: negatives that are not tested.",
        exists=True,
        dir_okay=False,
    ),
]
Harmful = Annotated[
    list[Path] | None,
    typer.Option(
        "--harmful", help="Prompts that must stay refused under the edits.", exists=True, dir_okay=False
    ),
]
Refusal = Annotated[str, typer.Option("--refusal", help="How a refusal starts; with --harmful.")]
Train = Annotated[
    list[Path] | None,
    typer.Option(
        "--train",
        help="What class means, shams and baselines are fitted on. Default: half of --data, by group.",
        exists=True,
        dir_okay=False,
    ),
]
Masked = Annotated[
    list[Path] | None,
    typer.Option(
        "--masked", help="Labelled examples with the telling words masked.", exists=True, dir_okay=False
    ),
]
Paraphrased = Annotated[
    list[Path] | None,
    typer.Option(
        "--paraphrased",
        help="Labelled examples in other words, or in another language.",
        exists=True,
        dir_okay=False,
    ),
]
Unrelated = Annotated[
    list[Path] | None,
    typer.Option(
        "--unrelated",
        help="Folder of a monitor of another concept, on the same model; may be repeated. The edits must not move it, and "
        "its direction must not move the behaviour.",
        exists=True,
        file_okay=False,
    ),
]
PhaseOption = Annotated[str | None, typer.Option("--phase", help="prompt or response. Default: as fitted.")]
DEFAULT_REFUSAL = "Sorry|I am sorry|I'm sorry|I cannot|I can't"


def verify(
    folder: options.MonitorFolder,
    *,
    data: options.Data,
    behaviour: Behave = None,
    full: Full = False,
    neutral: Neutral = None,
    harmful: Harmful = None,
    refusal: Refusal = DEFAULT_REFUSAL,
    train: Train = None,
    masked: Masked = None,
    paraphrased: Paraphrased = None,
    unrelated: Unrelated = None,
    phase: PhaseOption = None,
    model: options.Model = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longer examples are cut.", min=1)] = 512,
    text_field: options.TextField = "text",
    label_field: options.LabelField = "label",
    group_field: options.GroupField = "group",
    positive: options.Positive = None,
    cache: options.Cache = options.DEFAULT_CACHE,
    seed: options.Seed = 0,
) -> None:
    """Test whether the model uses what a monitor reads, and write the verdict.

    Reading is compared with the same recipe on permuted labels, with random directions and with the words alone. With a
    behaviour, the direction is removed from positives and written into negatives, and null edits of equal size say how
    much any push does; neutral text and monitors of other concepts must stay as they are. `invalid` may only log; `readout`
    may block and hold; `necessary`, `write-handle` and `causal` may steer, too. What each means: docs/causal-card.md.

    Example: `interlock monitor verify monitors/harm --data test.jsonl --behaviour "tokens:Sorry|I cannot"`
    """
    with told():
        from dataclasses import replace  # noqa: PLC0415

        from monitors.base import Evidence  # noqa: PLC0415
        from monitors.lab.card import CARD_FILE  # noqa: PLC0415
        from monitors.lab.causal import FULL, QUICK, Verification  # noqa: PLC0415
        from monitors.lab.causal import verify as verified  # noqa: PLC0415
        from monitors.lab.recipes import Recipe  # noqa: PLC0415
        from server.lab.opened import Opened  # noqa: PLC0415

        columns = options.columns(text_field, label_field, group_field, positive)
        subjects = read_subjects(
            columns,
            data,
            train=train,
            neutral=neutral,
            harmful=harmful,
            masked=masked,
            paraphrased=paraphrased,
        )
        opened = Opened.read(folder, model, max_tokens)
        subject, monitor, card = opened.subject, opened.monitor, opened.card
        others = read_unrelated(unrelated, subject, but=folder)
        fitted_by = opened.recipe()
        if fitted_by is not None and phase in {None, fitted_by.phase}:
            recipe = fitted_by
        else:
            known = card.fit.recipe.phase if card.fit else None
            chosen = phase_of(phase or known, subjects.test)
            scope = monitor.exclude_first if chosen == "prompt" else 0
            recipe = Recipe("mass_mean", monitor.hook_points, chosen, monitor.aggregator.unweighted, scope)
        measured, refusing = measures(behaviour, refusal, subject, subjects)
        with progress_bar("activations") as reading, progress_bar("sequences") as intervening:
            job = Verification(
                monitor,
                subject,
                subjects,
                FULL if full else QUICK,
                recipe,
                measured,
                refusal=refusing,
                unrelated=others,
                seed=seed,
                announce=announce,
                reading=reading,
                intervening=intervening,
            )
            section = verified(job, cache, opened.file.weights_sha256)
        evidence = replace(monitor.evidence or Evidence(), verdict=section.verdict, card=CARD_FILE)
        opened.write(replace(monitor, evidence=evidence), section)
    show(section)
    typer.echo(f"wrote {folder} (verdict in monitor.json, {CARD_FILE})")
    typer.echo(f"next: interlock monitor report {folder}")


def read_subjects(
    columns: "Columns",
    test: Sequence[Path],
    *,
    train: Sequence[Path] | None = None,
    neutral: Sequence[Path] | None = None,
    harmful: Sequence[Path] | None = None,
    masked: Sequence[Path] | None = None,
    paraphrased: Sequence[Path] | None = None,
) -> "Subjects":
    from monitors.lab.causal import Subjects  # noqa: PLC0415
    from monitors.lab.dataset import read_dataset  # noqa: PLC0415

    given = {
        "train": train,
        "neutral": neutral,
        "harmful": harmful,
        "masked": masked,
        "paraphrased": paraphrased,
    }
    parts = {name: read_dataset(paths, columns) for name, paths in given.items() if paths}
    return Subjects(read_dataset(test, columns), **parts)


def read_unrelated(folders: Sequence[Path] | None, subject: "Subject", *, but: Path) -> "tuple[Monitor, ...]":
    """Monitors of other concepts. Raises ArtifactError for another model's, ValueError for the one that is verified."""
    from monitors.artifacts import ModelIdentity, load_monitor  # noqa: PLC0415

    identity = ModelIdentity(subject.fingerprint, subject.blocks.d_model, len(subject.blocks.layers))
    for folder in folders or ():
        if folder.resolve() == but.resolve():
            raise ValueError(
                f"--unrelated {folder}: that is what is verified; name monitors of other concepts"
            )
    return tuple(load_monitor(folder, identity) for folder in folders or ())


def measures(
    behaviour: str | None, refusal: str, subject: "Subject", subjects: "Subjects"
) -> "tuple[Behaviour | None, Behaviour | None]":
    """What is measured on the examples, and on harmful ones."""
    from monitors.lab.causal import parse_behaviour  # noqa: PLC0415

    if behaviour is None:
        return None, None
    refusing = (
        parse_behaviour(f"tokens:{refusal}", subject, subjects.harmful[0]) if subjects.harmful else None
    )
    return parse_behaviour(behaviour, subject, subjects.test[0]), refusing


def phase_of(phase: str | None, examples: "Sequence[Example]") -> "Phase":
    match phase:
        case "prompt" | "response":
            return phase
        case None:
            return "response" if all(e.reply for e in examples) else "prompt"
        case _:
            raise ValueError(f"--phase {phase}: must be prompt or response")


def announce(num_passes: int) -> None:
    typer.echo(f"{num_passes:,} sequences will be run through the model", err=True)
