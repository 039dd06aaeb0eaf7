"""`interlock sae check` and `interlock sae convert`: SAEs of other projects, before they are used."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.lab import options
from server.lab.run import progress_bar, told

if TYPE_CHECKING:
    from monitors.lab.dataset import Example
    from monitors.lab.sae.acceptance import AcceptanceFile
    from monitors.lab.subject import Subject
    from monitors.sae.base import SparseAutoencoder

SaeFolder = Annotated[
    Path,
    typer.Argument(help="The SAE's folder.", exists=True, file_okay=False, show_default=False),
]
Format = Annotated[
    str, typer.Option("--format", help="saelens, gemma_scope, sparsify …: the table is in docs/sae.md.")
]
PlainText = Annotated[
    list[Path],
    typer.Option(
        "--data",
        help="Plain text: a .txt (a text per line), or .jsonl or .csv with 'text' or 'messages'; may be repeated.",
        exists=True,
        dir_okay=False,
    ),
]


def check(
    folder: SaeFolder,
    *,
    data: PlainText,
    sae_format: Format = "saelens",
    published_l0: Annotated[
        float | None,
        typer.Option("--published-l0", help="Active features per token, as its authors report.", min=0),
    ] = None,
    published_ev: Annotated[
        float | None,
        typer.Option("--published-ev", help="Explained variance (0 to 1), as its authors report.", max=1),
    ] = None,
    monitors: Annotated[
        list[Path] | None,
        typer.Option(
            "--monitor",
            help="A monitor's folder that uses this SAE: the result is written into its evidence; may be repeated.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    model: options.Model = None,
    exclude_first: Annotated[
        int, typer.Option("--exclude-first", help="Tokens of each text that don't count, such as BOS.", min=0)
    ] = 1,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longer texts are cut.", min=2)] = 512,
    text_field: options.TextField = "text",
    cache: options.Cache = options.DEFAULT_CACHE,
) -> None:
    """Test an SAE on plain text: active features per token (L0), unexplained variance, dead features.

    An SAE that is read with a wrong formula gives wrong numbers, not an error. So a monitor of its features may not be
    enforced until this test has passed. It takes 2,000 tokens or more of ordinary text. The SAE is refused if it
    reconstructs worse than the mean does, or if L0 is more than twice or less than half of what is published; then the
    known mistakes are tried, and those are told under which it would pass.

    Example: `interlock sae check monitors/saes/res-2 --data plain.txt --published-l0 32 --monitor monitors/weapons`
    """
    with told():
        from monitors.lab.activations import collect  # noqa: PLC0415
        from monitors.lab.sae.acceptance import (  # noqa: PLC0415
            Published,
            accept,
            neighbours,
            write_acceptance,
        )
        from monitors.lab.sae.evidence import write_accepted  # noqa: PLC0415
        from monitors.lab.sae.opening import open_sae  # noqa: PLC0415
        from server.lab.subject import load_subject  # noqa: PLC0415

        sae, sha256 = open_sae(folder, sae_format)
        published = Published(sae.published_l0 if published_l0 is None else published_l0, published_ev)
        examples = read_plain(data, text_field)
        subject = load_subject(model, max_tokens=max_tokens)
        check_fits(subject, sae)
        points = neighbours(sae.hook_point, len(subject.blocks.layers))
        with progress_bar("activations") as progress:
            acts = collect(subject, examples, points, cache, progress=progress)
        result = accept(
            sae, acts, published, sha256=sha256, fingerprint=subject.fingerprint, exclude_first=exclude_first
        )
        write_acceptance(result, folder)
        for monitor in monitors or ():
            write_accepted(monitor, subject, sae, sha256, accepted=result.accepted)
    _show(result, folder, monitors or [])
    if not result.accepted:
        raise typer.Exit(1)


def convert(
    source: Annotated[
        Path, typer.Argument(help="The pickle: .pt, .pth or .bin.", exists=True, dir_okay=False)
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist.", file_okay=False)],
    *,
    sae_format: Annotated[
        str,
        typer.Option("--format", help="dictionary_learning, openai, goodfire, qresearch or qwen_scope."),
    ],
    hook_point: Annotated[
        str | None,
        typer.Option(
            "--hook-point", help="blocks.<layer>.hook_resid_post. dictionary_learning says it itself."
        ),
    ] = None,
    k: Annotated[
        int | None, typer.Option("--k", help="Active features per token, of Qwen Scope (in its name).", min=1)
    ] = None,
) -> None:
    """Turn an SAE that is published as a pickle into safetensors, in a process of its own.

    A pickle can run code. It is read here, once, offline: by torch's reader of plain tensors, without network where the
    system allows that, with limits on memory, time and files; and only the tensors of the format come out. Everywhere else
    pickles are refused.

    Example: `interlock sae convert ae.pt monitors/saes/res-2 --format dictionary_learning`
    """
    with told():
        from monitors.lab.sae.convert import convert as converted  # noqa: PLC0415

        result = converted(source, out, sae_format, hook_point=hook_point, k=k)
    if not result.without_network:
        typer.echo(
            "note: this system does not let a process give up its network; it was read with it", err=True
        )
    sae = result.sae
    typer.echo(f"wrote {out}: {sae.num_features:,} features at {sae.hook_point}")
    typer.echo(f"next: interlock sae check {out} --format {sae_format} --data plain.txt")


def read_plain(
    paths: list[Path], text_field: str, label_field: str = "label", positive: list[str] | None = None
) -> "tuple[Example, ...]":
    """Texts: one per line of a .txt, or the examples of .jsonl and .csv files. Raises DatasetError."""
    from monitors.lab.dataset import DatasetError, Example, read_dataset, read_lines  # noqa: PLC0415

    columns = options.columns(text_field, label_field, positive=positive)
    examples: list[Example] = []
    for path in paths:
        if path.suffix == ".txt":
            examples += [
                Example(f"{path.stem}:{i}", text=t) for i, t in enumerate(read_lines(path), 1) if t.strip()
            ]
        else:
            examples += read_dataset([path], columns)
    if not examples:
        raise DatasetError(f"{', '.join(map(str, paths))}: no text")
    return tuple(examples)


def check_layer(subject: "Subject", layer: int) -> None:
    """Raise ValueError for a layer that the model does not have."""
    if layer >= len(subject.blocks.layers):
        raise ValueError(
            f"the SAE reads block {layer}; {subject.name} has blocks 0 to {len(subject.blocks.layers) - 1}: "
            "give the model that it was trained on, with --model"
        )


def check_fits(subject: "Subject", sae: "SparseAutoencoder") -> None:
    """Raise ValueError for an SAE of another model, by its layer or width."""
    check_layer(subject, sae.hook_point.layer)
    if (width := sae.W_dec.shape[1]) != subject.blocks.d_model:
        raise ValueError(
            f"the SAE is for d_model {width}; {subject.name} has {subject.blocks.d_model}: "
            "give the model that it was trained on, with --model"
        )


def _show(result: "AcceptanceFile", folder: Path, monitors: list[Path]) -> None:
    def beside(value: float | None, form: str) -> str:
        return "" if value is None else f"   (published: {value:{form}})"

    typer.echo(
        f"{result.num_tokens:,} tokens at {result.hook_point}\n"
        f"active features per token (L0)  {result.l0:.4g}{beside(result.published_l0, '.4g')}\n"
        f"explained variance              {result.explained_variance:.1%}"
        f"{beside(result.published_explained_variance, '.1%')}   FVU {result.fvu:.4g}\n"
        f"features never active           {result.dead:.1%}"
    )
    if result.published_l0 is None:
        typer.echo("nothing published is known for it: give --published-l0 for a stricter test", err=True)
    for reason in result.reasons:
        typer.echo(f"not accepted: {reason}", err=True)
    for suspect in result.suspects:
        typer.echo(f"it would pass if: {suspect}", err=True)
    typer.echo("accepted" if result.accepted else "NOT ACCEPTED: rules may not act on its features")
    typer.echo(f"wrote {', '.join(map(str, [folder / 'acceptance.json', *monitors]))}")
