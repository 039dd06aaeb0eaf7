"""`interlock monitor fit`: from labelled examples to a monitor."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from server.lab import options
from server.lab.run import progress_bar, told

if TYPE_CHECKING:
    from monitors.aggregate import AggregatorSpec
    from monitors.lab.fitting import Fitted
    from monitors.lab.sections.base import Phase
    from monitors.types import HookPoint


def fit(
    *,
    name: Annotated[
        str, typer.Option("--name", help="The monitor's name, as policies write it: prompt.NAME.")
    ],
    data: options.Data,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write. Default: monitors/NAME.", file_okay=False)
    ] = None,
    model: options.Model = None,
    phase: Annotated[
        str | None,
        typer.Option(
            "--phase", help="prompt or response. Default: response if every example has a reply, else prompt."
        ),
    ] = None,
    layers: Annotated[
        list[int] | None,
        typer.Option("--layers", help="Block outputs to try; may be repeated. Default: all."),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            help="One layer each: logistic, logistic_last, mass_mean, mass_mean_whitened, lda, sliding_window, max_rolling_mean, softmax, attention, rolling_attention, multimax, mlp, polynomial, condition, condition_mean, novelty. With --sae: sae_features, sae_features_max. All layers at once: logistic_layers, "
            "multilayer. Several: all-linear (those without gradient steps), all. May be repeated. Default: logistic.",
        ),
    ] = None,
    aggregator: Annotated[
        list[str] | None,
        typer.Option(
            "--aggregator",
            help="How the server aggregates over tokens: mean, max, ema:0.12, softmax:5, rolling_mean:8, max_rolling_mean:8, "
            "attention, rolling_attention:10 …; may be repeated. A kind is tried with those that it allows. "
            "Default: what suits the kind; mostly mean and ema:0.12 (an encoder: the first).",
        ),
    ] = None,
    penalty: Annotated[
        list[float] | None,
        typer.Option("--penalty", help="L2 penalty of logistic; may be repeated. Default: 1 and 30."),
    ] = None,
    sae: Annotated[
        Path | None,
        typer.Option(
            "--sae",
            help="The folder of an SAE, for kinds sae_features and sae_features_max. Inside the monitors folder (that of --out), "
            "the monitor refers to it; elsewhere, the rows of the chosen features are copied.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    sae_format: Annotated[
        str, typer.Option("--sae-format", help="saelens, gemma_scope …: the table is in docs/sae.md.")
    ] = "saelens",
    sae_encode: Annotated[
        str,
        typer.Option(
            "--sae-encode",
            help="selected: only the rows of the chosen features. whole: the whole encoder for every token, as top-k SAEs need.",
        ),
    ] = "selected",
    num_folds: Annotated[int, typer.Option("--folds", help="Of cross-validation.", min=2, max=50)] = 5,
    exclude_first: Annotated[
        int,
        typer.Option("--exclude-first", help="Tokens of the prompt that are not read, such as BOS.", min=0),
    ] = 0,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longer examples are cut.", min=1)] = 512,
    text_field: options.TextField = "text",
    label_field: options.LabelField = "label",
    group_field: options.GroupField = "group",
    positive: options.Positive = None,
    cache: options.Cache = options.DEFAULT_CACHE,
    seed: options.Seed = 0,
) -> None:
    """Fit a monitor: try layers, kinds and aggregators by cross-validation, keep the best, refit it on everything.

    Every candidate is judged by what the server will compute: its running score over the tokens of a request, the largest
    of which is the request's. TF-IDF on the same folds and random directions at each layer stand beside it: a monitor that
    does not beat them knows nothing. Examples of one group never stand on both sides of a split. Activations and finished
    candidates are kept in the cache: a run that was interrupted goes on, and a second one asks for little.

    Conversations: `interlock monitor fit --name harm --data train.jsonl --kind all-linear`

    Texts in a CSV file: `interlock monitor fit --name harm --data prompts.csv --text-field prompt --positive unsafe --group-field topic`

    Long replies: `interlock monitor fit --name harm --data train.jsonl --phase response --kind multilayer --aggregator ema:0.12`
    """
    with told():
        from monitors.aggregate import AggregatorSpec  # noqa: PLC0415
        from monitors.artifacts import save_monitor  # noqa: PLC0415
        from monitors.lab.card import CARD_FILE, write_card  # noqa: PLC0415
        from monitors.lab.dataset import read_dataset  # noqa: PLC0415
        from monitors.lab.fitting import Search, doubts, fit_monitor  # noqa: PLC0415
        from monitors.sae_features import SaeFeatures  # noqa: PLC0415
        from server.lab.sae_source import open_source, reference_to  # noqa: PLC0415
        from server.lab.subject import load_subject  # noqa: PLC0415

        columns = options.columns(text_field, label_field, group_field, positive)
        examples = read_dataset(data, columns)
        subject = load_subject(model, max_tokens=max_tokens)
        search = Search(
            kinds=tuple(kind or ["logistic"]),
            hook_points=_hook_points(layers, subject.hook_points),
            aggregators=tuple(_aggregator(text, AggregatorSpec) for text in aggregator or ()),
            penalties=tuple(penalty or (1.0, 30.0)),
            phase=checked_phase(phase),
            num_folds=num_folds,
            exclude_first=exclude_first,
            seed=seed,
            sae=None if sae is None else open_source(sae, sae_format, sae_encode),
        )
        folder = out or Path("monitors") / name
        reference = None if sae is None else reference_to(sae, sae_format, sae_encode, folder)
        with progress_bar("activations") as reading, progress_bar("fits") as fitting:
            fitted = fit_monitor(name, subject, examples, search, cache, reading=reading, fitting=fitting)
        transform = fitted.monitor.transform
        save_monitor(
            fitted.monitor,
            folder,
            fingerprint=subject.fingerprint,
            tokenizer_hash=subject.tokenizer_hash,
            sae=reference(transform.features) if reference and isinstance(transform, SaeFeatures) else None,
        )
        write_card(fitted.card(folder, subject.fingerprint), folder)
    _show(fitted)
    for doubt in doubts(fitted.section):
        typer.echo(f"warning: {doubt}", err=True)
    typer.echo(f"wrote {folder} (monitor.json, weights.safetensors, {CARD_FILE})")
    if not subject.is_causal:
        typer.echo("This model is an encoder: the monitor can be measured, but not served.")
    typer.echo(f"next: interlock monitor calibrate {folder} --data benign.jsonl")


def _hook_points(layers: list[int] | None, known: "tuple[HookPoint, ...]") -> "tuple[HookPoint, ...]":
    if layers is None:
        return known
    for layer in layers:
        if not 0 <= layer < len(known):
            raise ValueError(f"--layers {layer}: the model has layers 0 to {len(known) - 1}")
    return tuple(known[layer] for layer in sorted(set(layers)))


def _aggregator(text: str, spec: "type[AggregatorSpec]") -> "AggregatorSpec":
    """`ema:0.12`, `rolling_mean:8`, `mean`."""
    kind, _, parameter = text.partition(":")
    try:
        if not parameter:
            return spec(kind)
        match kind:
            case "ema":
                return spec(kind, alpha=float(parameter))
            case "softmax":
                return spec(kind, temperature=float(parameter))
            case _:
                return spec(kind, window=int(parameter))
    except ValueError as error:
        raise ValueError(
            f"--aggregator {text}: {error}; write for example mean, ema:0.12 or rolling_mean:8"
        ) from error


def checked_phase(phase: str | None) -> "Phase | None":
    """Raises ValueError for what is none."""
    match phase:
        case None | "prompt" | "response":
            return phase
        case _:
            raise ValueError(f"--phase {phase}: must be prompt or response")


def _show(fitted: "Fitted") -> None:
    section = fitted.section
    table = Table(
        title=f"{section.num_examples} examples ({section.num_positive} positive), {section.num_folds} folds over "
        f"{section.num_groups} groups; by {section.statistic} of the running score"
    )
    for heading in (
        "kind",
        "layer",
        "aggregator",
        "settings",
        "AUROC (95 %)",
        "TPR at 1 % FPR",
        "random, mean (best)",
    ):
        table.add_column(heading)
    random = {one.hook_point: one.random for one in section.random}
    for found in section.candidates:
        recipe = found.recipe
        last = recipe.hook_points[-1]
        layer = last.split(".")[1] if len(recipe.hook_points) == 1 else f"all {len(recipe.hook_points)}"
        parameter = recipe.aggregator.alpha or recipe.aggregator.window or recipe.aggregator.temperature
        beside = random.get(last)
        table.add_row(
            recipe.trainer,
            layer,
            recipe.aggregator.kind + (f":{parameter:g}" if parameter else ""),
            ", ".join(f"{key} {value:g}" for key, value in recipe.settings.items()),
            f"{found.auroc.value:.3f} ({found.auroc.low:.3f} to {found.auroc.high:.3f})",
            "too few" if found.tpr_at_1pct is None else f"{found.tpr_at_1pct:.1%}",
            f"{beside.mean_auroc:.3f} ({beside.best_auroc:.3f})" if beside else "",
            style="bold" if recipe == section.recipe else None,
        )
    words = section.tfidf_auroc
    table.add_section()
    table.add_row("TF-IDF", "", "", "", f"{words.value:.3f} ({words.low:.3f} to {words.high:.3f})", "", "")
    Console().print(table)
