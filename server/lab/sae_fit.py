"""`interlock sae fit` and `interlock sae features`: SAEs of one's own."""

from pathlib import Path
from typing import Annotated

import typer

from server.lab import options
from server.lab.run import progress_bar, told
from server.lab.sae import Format, PlainText, SaeFolder, check_fits, check_layer, read_plain


def fit(
    *,
    data: PlainText,
    out: Annotated[Path, typer.Option("--out", help="Folder to write; must not exist.", file_okay=False)],
    layer: Annotated[str, typer.Option("--layer", help="Where it reads, such as blocks.2.hook_resid_post.")],
    width: Annotated[
        str, typer.Option("--width", help="How many features: a number, or 8x for 8 times d_model.")
    ] = "8x",
    kind: Annotated[
        str, typer.Option("--kind", help="batchtopk or jumprelu; either is saved as JumpReLU.")
    ] = "batchtopk",
    k: Annotated[int, typer.Option("--k", help="Active features per token, on average.", min=1)] = 32,
    steps: Annotated[int, typer.Option("--steps", help="Training steps.", min=1)] = 5000,
    batch: Annotated[int, typer.Option("--batch", help="Tokens per step.", min=1)] = 1024,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Of Adam.")] = 1e-3,
    model: options.Model = None,
    exclude_first: Annotated[
        int,
        typer.Option("--exclude-first", help="Tokens of each text that are left out, such as BOS.", min=0),
    ] = 1,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longer texts are cut.", min=2)] = 512,
    text_field: options.TextField = "text",
    cache: options.Cache = options.DEFAULT_CACHE,
    seed: options.Seed = 0,
) -> None:
    """Train a sparse autoencoder on a model's activations, and write it as a SAELens folder.

    Activations are computed once and kept. Training goes on where it was stopped. One text in ten is kept back to tell
    active features per token (L0) and explained variance. A good SAE takes millions of tokens; all are held in memory.

    Example: `interlock sae fit --data texts.jsonl --layer blocks.2.hook_resid_post --out monitors/saes/mine --width 8x`
    """
    with told():
        from monitors.lab.activations import collect  # noqa: PLC0415
        from monitors.lab.sae.fitting import fit_sae  # noqa: PLC0415
        from monitors.lab.sae.training import Settings  # noqa: PLC0415
        from monitors.types import HookPoint  # noqa: PLC0415
        from server.lab.subject import load_subject  # noqa: PLC0415

        if out.exists():
            raise ValueError(f"{out}: exists already; give a folder that does not")
        if kind not in {"batchtopk", "jumprelu"}:
            raise ValueError(f"--kind {kind!r}: known are batchtopk, jumprelu")
        point = HookPoint.parse(layer)
        examples = read_plain(data, text_field)
        subject = load_subject(model, max_tokens=max_tokens)
        check_layer(subject, point.layer)
        settings = Settings(
            _width(width, subject.blocks.d_model),
            "batchtopk" if kind == "batchtopk" else "jumprelu",
            k,
            steps,
            batch,
            learning_rate,
            seed,
        )
        with progress_bar("activations") as progress:
            acts = collect(subject, examples, [point], cache, progress=progress)
        with progress_bar("training") as progress:
            fitted = fit_sae(
                acts,
                point,
                settings,
                out,
                model_name=subject.name,
                exclude_first=exclude_first,
                progress=progress,
            )
    found = fitted.measured
    typer.echo(
        f"trained on {fitted.num_trained_on:,} tokens; on {found.num_tokens:,} others:\n"
        f"active features per token (L0)  {found.l0:.4g}\n"
        f"explained variance              {found.explained_variance:.1%}\n"
        f"dead features                   {found.dead:.1%}\n"
        f"wrote {out}\n"
        f"next: interlock sae check {out} --data plain.txt --published-l0 {found.l0:.3g}"
    )


def features(
    folder: SaeFolder,
    *,
    data: PlainText,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="File to write. Default: features.json in the SAE's folder.", dir_okay=False
        ),
    ] = None,
    sae_format: Format = "saelens",
    top: Annotated[
        int, typer.Option("--top", help="Contexts per feature; 0 writes no text.", min=0, max=200)
    ] = 20,
    model: options.Model = None,
    exclude_first: Annotated[
        int, typer.Option("--exclude-first", help="Tokens of each text that don't count, such as BOS.", min=0)
    ] = 1,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longer texts are cut.", min=2)] = 512,
    text_field: options.TextField = "text",
    label_field: options.LabelField = "label",
    positive: options.Positive = None,
    cache: options.Cache = options.DEFAULT_CACHE,
) -> None:
    """Tell what features stand for: how often each is active, in which contexts most, and AUROC against the label if there is one.

    The file holds TEXT of your data (`--top 0` leaves it out). AUROC is of a feature's maximum over an example; with many
    features the best one looks good by chance, so choose on these examples and judge on others (`interlock monitor eval`).

    Example: `interlock sae features monitors/saes/mine --data labelled.jsonl --top 20`
    """
    with told():
        from monitors.lab.activations import collect  # noqa: PLC0415
        from monitors.lab.sae.features import FEATURES_FILE, describe  # noqa: PLC0415
        from monitors.lab.sae.opening import open_sae  # noqa: PLC0415
        from server.lab.subject import load_subject  # noqa: PLC0415

        sae, sha256 = open_sae(folder, sae_format)
        examples = read_plain(data, text_field, label_field, positive)
        subject = load_subject(model, max_tokens=max_tokens)
        check_fits(subject, sae)
        if subject.token_texts is None:
            raise ValueError(f"{subject.name}: its tokens can't be shown as text; give --top 0")
        with progress_bar("activations") as progress:
            acts = collect(subject, examples, [sae.hook_point], cache, progress=progress)
        with progress_bar("features") as progress:
            found = describe(
                sae,
                acts,
                subject.token_texts,
                top=top,
                sha256=sha256,
                fingerprint=subject.fingerprint,
                exclude_first=exclude_first,
                progress=progress,
            )
        path = out or folder / FEATURES_FILE
        path.write_text(found.model_dump_json(by_alias=True, indent=1) + "\n", encoding="utf-8")
    typer.echo(
        f"{len(found.features):,} of {sae.num_features:,} features were active on {found.num_tokens:,} tokens"
    )
    for part in found.features[:5]:
        told_by = "" if part.auroc is None else f", AUROC {part.auroc:.3f}"
        typer.echo(
            f"feature {part.index}: active on {part.frequency:.2%}, at most {part.max_activation:.3g}{told_by}"
        )
    typer.echo(f"wrote {path}" + (" (it holds text of the data)" if top else ""))


def _width(text: str, d_model: int) -> int:
    number = text.removesuffix("x")
    if not number.isdecimal() or int(number) < 1:
        raise ValueError(f"--width {text!r}: a number of features such as 4096, or a factor such as 8x")
    return int(number) * (d_model if text.endswith("x") else 1)
