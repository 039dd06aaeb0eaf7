"""`interlock vector fit` and `interlock vector verify`: steering vectors, and whether they may steer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from server.lab import options
from server.lab.causal_card import show
from server.lab.run import progress_bar, told
from server.lab.verify import (
    DEFAULT_REFUSAL,
    Behave,
    Full,
    Harmful,
    Neutral,
    Refusal,
    Train,
    Unrelated,
    announce,
    measures,
    phase_of,
    read_subjects,
    read_unrelated,
)

if TYPE_CHECKING:
    from monitors.lab.pooling import Pooling
    from monitors.lab.vectors import Method, Swept
    from monitors.types import HookPoint

VectorFolder = Annotated[
    Path,
    typer.Argument(
        help="The vector's folder (it holds vector.json).", exists=True, file_okay=False, show_default=False
    ),
]
Phase = Annotated[str, typer.Option("--phase", help="prompt or response: where the classes are compared.")]


def fit(
    *,
    name: Annotated[str, typer.Option("--name", help="The vector's name, as policies write it.")],
    data: options.Data,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="caa (mean difference at the last token of pairs: examples of one group), mass_mean (class means over the phase), "
            "ace (the same, written as an affine edit: 0 is one class mean, 1 the other).",
        ),
    ] = "mass_mean",
    layers: Annotated[
        list[int] | None,
        typer.Option(
            "--layers",
            help="Block outputs; may be repeated. With --behaviour they are tried, one at a time, and the best is kept; without, "
            "all are steered at once. Default: with --behaviour all, else the middle one.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write. Default: monitors/NAME.", file_okay=False)
    ] = None,
    behaviour: Behave = None,
    neutral: Neutral = None,
    phase: Phase = "prompt",
    tokens: Annotated[
        str | None,
        typer.Option(
            "--tokens",
            help="mean: class means over the phase; last: at its last token, where an answer is decided. Default: last for caa, else mean.",
        ),
    ] = None,
    exclude_first: Annotated[
        int,
        typer.Option("--exclude-first", help="Tokens of the prompt that are left out, such as BOS.", min=0),
    ] = 0,
    max_norm_ratio: Annotated[
        float,
        typer.Option("--max-norm-ratio", help="The largest change, relative to a row's norm.", min=0.001),
    ] = 0.3,
    model: options.Model = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longer examples are cut.", min=1)] = 512,
    text_field: options.TextField = "text",
    label_field: options.LabelField = "label",
    group_field: options.GroupField = "group",
    positive: options.Positive = None,
    cache: options.Cache = options.DEFAULT_CACHE,
    seed: options.Seed = 0,
) -> None:
    """Fit a steering vector that moves negatives towards positives.

    Its length is the distance of the classes, so that a strength of 1 is one class gap. With `--behaviour`, layers and
    strengths are tried on examples that it was not fitted on, and the one with the largest effect that leaves neutral
    text alone is kept. A policy may steer with it once `interlock vector verify` says so.

    Example: `interlock vector fit --name calm --data pairs.jsonl --method caa --layers 3 --behaviour "tokens:Sorry|I cannot"`
    """
    with told():
        from monitors.artifacts import save_vector  # noqa: PLC0415
        from monitors.lab.vectors import VectorSearch, best, search  # noqa: PLC0415
        from server.lab.subject import load_subject  # noqa: PLC0415

        how = _method(method)
        columns = options.columns(text_field, label_field, group_field, positive)
        subjects = read_subjects(columns, data, neutral=neutral)
        subject = load_subject(model, max_tokens=max_tokens)
        measured, _ = measures(behaviour, "", subject, subjects)
        wanted = VectorSearch(
            name,
            how,
            _points(layers, subject.hook_points, every=measured is not None),
            phase_of(phase, subjects.test),
            measured,
            None if tokens is None else _pooling(tokens),
            exclude_first,
            max_norm_ratio,
            seed,
        )
        with progress_bar("activations") as reading, progress_bar("sequences") as sweeping:
            vector, swept = search(
                wanted, subject, subjects.test, subjects.neutral, cache, reading=reading, sweeping=sweeping
            )
        folder = out or Path("monitors") / name
        save_vector(vector, folder, fingerprint=subject.fingerprint, tokenizer_hash=subject.tokenizer_hash)
    if swept:
        chosen = best(swept)
        _show_sweep(swept, chosen)
        typer.echo(f"best: {chosen.vector.directions[0].hook_point} at strength {chosen.strength:g}")
        if chosen.effect.low <= 0:
            typer.echo("warning: even this does not move behaviour for certain", err=True)
    typer.echo(f"wrote {folder} (vector.json, weights.safetensors): {vector.operation}, gap {vector.gap:.3g}")
    typer.echo(f"next: interlock vector verify {folder} --data test.jsonl --behaviour …")


def verify(
    folder: VectorFolder,
    *,
    data: options.Data,
    behaviour: Behave = None,
    full: Full = False,
    neutral: Neutral = None,
    harmful: Harmful = None,
    refusal: Refusal = DEFAULT_REFUSAL,
    train: Train = None,
    unrelated: Unrelated = None,
    phase: Phase = "prompt",
    tokens: Annotated[
        str,
        typer.Option(
            "--tokens",
            help="mean: class means over the phase; last: at its last token, from where on is edited, as for caa.",
        ),
    ] = "mean",
    exclude_first: Annotated[
        int,
        typer.Option("--exclude-first", help="Tokens of the prompt that are left out, such as BOS.", min=0),
    ] = 0,
    model: options.Model = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longer examples are cut.", min=1)] = 512,
    text_field: options.TextField = "text",
    label_field: options.LabelField = "label",
    group_field: options.GroupField = "group",
    positive: options.Positive = None,
    cache: options.Cache = options.DEFAULT_CACHE,
    seed: options.Seed = 0,
) -> None:
    """Test whether a vector's direction moves behaviour, and nothing else; write the verdict that policies go by.

    The same measures as `interlock monitor verify`, on the vector's direction. A vector that changes neutral text, or
    that weakens refusals of `--harmful` prompts, is flagged `entangled` and gets no verdict to steer with.

    Example: `interlock vector verify monitors/calm --data test.jsonl --behaviour "tokens:Sorry|I cannot"`
    """
    with told():
        from dataclasses import replace  # noqa: PLC0415

        from monitors.artifacts import ModelIdentity, load_vector, save_vector  # noqa: PLC0415
        from monitors.artifacts.files import VECTOR_FILE, VectorFile, read_json  # noqa: PLC0415
        from monitors.lab.card import CARD_FILE, Card, read_card, write_card  # noqa: PLC0415
        from monitors.lab.causal import FULL, QUICK, Verification  # noqa: PLC0415
        from monitors.lab.causal import verify as verified  # noqa: PLC0415
        from monitors.lab.recipes import Recipe  # noqa: PLC0415
        from monitors.lab.vectors import probe_of  # noqa: PLC0415
        from server.lab.subject import load_subject  # noqa: PLC0415

        pooling = _pooling(tokens)
        columns = options.columns(text_field, label_field, group_field, positive)
        subjects = read_subjects(columns, data, train=train, neutral=neutral, harmful=harmful)
        subject = load_subject(model, max_tokens=max_tokens)
        identity = ModelIdentity(subject.fingerprint, subject.blocks.d_model, len(subject.blocks.layers))
        vector = load_vector(folder, identity)
        others = read_unrelated(unrelated, subject, but=folder)
        probe = probe_of(vector, pooling)
        where = phase_of(phase, subjects.test)
        measured, refusing = measures(behaviour, refusal, subject, subjects)
        file = read_json(folder / VECTOR_FILE, folder.parent, VectorFile)
        with progress_bar("activations") as reading, progress_bar("sequences") as intervening:
            job = Verification(
                probe,
                subject,
                subjects,
                FULL if full else QUICK,
                Recipe("mass_mean", probe.hook_points, where, probe.aggregator, exclude_first),
                measured,
                refusal=refusing,
                unrelated=others,
                pooling=pooling,
                statistic="last",
                seed=seed,
                announce=announce,
                reading=reading,
                intervening=intervening,
            )
            section = verified(job, cache, file.weights_sha256)
        verdict = (
            section.verdict if measured is not None else None
        )  # reading alone says nothing about steering
        vector = replace(vector, verdict=verdict)
        save_vector(
            vector,
            folder,
            fingerprint=subject.fingerprint,
            tokenizer_hash=file.tokenizer_hash,
            sae=file.sae,
        )
        card = read_card(folder) or Card(
            monitor=vector.name, version=vector.version, fingerprint=subject.fingerprint
        )
        write_card(card.with_section(section), folder)
    show(section)
    may = "may steer" if vector.steerable else "may not steer without a written override"
    typer.echo(f"wrote {folder} (verdict in vector.json, {CARD_FILE}): {vector.operation} {may}")


def _method(method: str) -> "Method":
    match method:
        case "caa" | "mass_mean" | "ace":
            return method
        case _:
            raise ValueError(f"--method {method}: must be caa, mass_mean or ace")


def _pooling(tokens: str) -> "Pooling":
    match tokens:
        case "mean" | "last":
            return tokens
        case _:
            raise ValueError(f"--tokens {tokens}: must be mean or last")


def _points(
    layers: list[int] | None, known: "tuple[HookPoint, ...]", *, every: bool
) -> "tuple[HookPoint, ...]":
    if layers is None:
        return known if every else (known[len(known) // 2],)
    for layer in layers:
        if not 0 <= layer < len(known):
            raise ValueError(f"--layers {layer}: the model has layers 0 to {len(known) - 1}")
    return tuple(known[layer] for layer in sorted(set(layers)))


def _show_sweep(swept: "list[Swept]", chosen: "Swept") -> None:
    table = Table(title="on held-out examples; share of the difference between the classes")
    for heading in ("hook point", "strength", "effect on negatives (95 %)", "mean KL on neutral text"):
        table.add_column(heading)
    for one in swept:
        e = one.effect
        table.add_row(
            str(one.vector.directions[0].hook_point),
            f"{one.strength:g}",
            f"{e.value:.2f} ({e.low:.2f} to {e.high:.2f})",
            f"{one.mean_kl:.3f}",
            style="bold" if one is chosen else None,
        )
    Console().print(table)
