"""What the lab's commands are asked with, spelled once."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from monitors.lab.dataset import Columns

Model = Annotated[
    str | None, typer.Option("--model", help="Hub id or folder of the model. Default: the demo model.")
]
Data = Annotated[
    list[Path],
    typer.Option(
        "--data",
        help="Labelled examples, .jsonl or .csv; may be repeated. A line has 'messages' (or a 'text'), 'label' (1 or 0), "
        "and optionally 'reply', 'group', 'dataset', 'id'.",
        exists=True,
        dir_okay=False,
    ),
]
TextField = Annotated[str, typer.Option("--text-field", help="The field or column that holds the text.")]
LabelField = Annotated[str, typer.Option("--label-field", help="The field or column that holds the label.")]
GroupField = Annotated[
    str, typer.Option("--group-field", help="Examples of one group stay on one side of every split.")
]
Positive = Annotated[
    list[str] | None,
    typer.Option(
        "--positive", help="A value of the label that means 1; may be repeated. Default: 1 and true."
    ),
]
Cache = Annotated[
    Path,
    typer.Option("--cache", help="Where activations are kept, so that a second run need not compute them."),
]
Seed = Annotated[int, typer.Option("--seed", help="Of every random choice.")]
MonitorFolder = Annotated[
    Path,
    typer.Argument(
        help="The monitor's folder (it holds monitor.json).", exists=True, file_okay=False, show_default=False
    ),
]
DEFAULT_CACHE = Path("var/activations")


def columns(
    text: str, label: str = "label", group: str = "group", positive: list[str] | None = None
) -> "Columns":
    """Which fields of a file mean what, as the options say."""
    from monitors.lab.dataset import Columns  # noqa: PLC0415

    return Columns(text, label, group, tuple(positive) if positive else Columns().positive)
