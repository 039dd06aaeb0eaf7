"""`interlock vector import` and `interlock monitor import`: steering vectors and conditions of other projects."""

from pathlib import Path
from typing import Annotated

import typer

from server.lab import options
from server.lab.run import told


def import_vector(
    file: Annotated[
        Path,
        typer.Argument(
            help=".gguf (repeng), .svec (IBM activation-steering), .safetensors (layer.<n>)",
            exists=True,
            dir_okay=False,
        ),
    ],
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.", file_okay=False)],
    name: Annotated[
        str | None,
        typer.Option("--name", help="As policies write it. Default: the name of the folder."),
    ] = None,
    model: options.Model = None,
) -> None:
    """Bring in a control vector of repeng, a behaviour of IBM's activation-steering (CAST), or plain layers.

    What comes in is bound to the model that you name, and has no evidence: a policy may not steer with it until
    `interlock vector verify` has found that it does what it should. Pickles are refused.

    Example: `interlock vector import honest.gguf --out monitors/honest --model meta-llama/Llama-3.1-8B-Instruct`
    """
    with told():
        from monitors.artifacts import save_vector  # noqa: PLC0415
        from monitors.imports.vectors import import_vector as imported  # noqa: PLC0415
        from server.lab.subject import load_subject  # noqa: PLC0415

        subject = load_subject(model)
        vector = imported(
            file,
            name=name or out.name,
            d_model=subject.blocks.d_model,
            num_layers=len(subject.blocks.layers),
        )
        save_vector(vector, out, fingerprint=subject.fingerprint)
    points = ", ".join(str(direction.hook_point) for direction in vector.directions)
    typer.echo(f"wrote {out}: added at {points}\nnext: interlock vector verify {out} --data …")


def import_condition(
    file: Annotated[
        Path,
        typer.Argument(help=".svec (IBM activation-steering)", exists=True, dir_okay=False),
    ],
    *,
    layer: Annotated[
        int, typer.Option("--layer", help="The condition's layer, as in condition_layer_ids.", min=0)
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.", file_okay=False)],
    name: Annotated[
        str | None,
        typer.Option("--name", help="As policies write it. Default: the name of the folder."),
    ] = None,
    pooling: Annotated[
        str,
        typer.Option(
            "--pooling", help="mean or last: of the prompt's rows (condition_threshold_comparison_mode)."
        ),
    ] = "mean",
    threshold_is: Annotated[
        str,
        typer.Option(
            "--threshold-is",
            help="smaller or larger than the similarity where the condition is met (condition_comparator_threshold_is). "
            "larger: the monitor's score is minus the similarity.",
        ),
    ] = "smaller",
    model: options.Model = None,
) -> None:
    """Bring in a condition of IBM's activation-steering (CAST) as a monitor of the prompt.

    Its score is CAST's similarity, so that the thresholds found there hold: `last(prompt.NAME) > 0.04`. Better calibrate it.

    Example: `interlock monitor import hate_condition.svec --layer 7 --out monitors/hate --model NousResearch/Hermes-2-Pro-Llama-3-8B`
    """
    with told():
        from monitors.artifacts import save_monitor  # noqa: PLC0415
        from monitors.imports.conditions import import_condition as imported  # noqa: PLC0415
        from server.lab.subject import load_subject  # noqa: PLC0415

        if pooling not in {"mean", "last"}:
            raise ValueError(f"--pooling {pooling}: must be mean or last")
        if threshold_is not in {"smaller", "larger"}:
            raise ValueError(f"--threshold-is {threshold_is}: must be smaller or larger")
        subject = load_subject(model)
        monitor = imported(
            file,
            name=name or out.name,
            layer=layer,
            pooling="mean" if pooling == "mean" else "last",
            threshold_is="smaller" if threshold_is == "smaller" else "larger",
            d_model=subject.blocks.d_model,
            num_layers=len(subject.blocks.layers),
        )
        save_monitor(monitor, out, fingerprint=subject.fingerprint, tokenizer_hash=subject.tokenizer_hash)
    typer.echo(f"wrote {out}: {monitor.transform.kind} at {monitor.hook_points[0]}")
    typer.echo(f"next: interlock monitor calibrate {out} --data benign.jsonl")
