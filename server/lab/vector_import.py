"""`interlock vector import`: steering vectors of other projects."""

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
