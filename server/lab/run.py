"""What every lab command does around its work: a progress bar, and errors as one message with exit code 2."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_EXTRA = {"sklearn", "scipy", "matplotlib"}  # what a server does without


@contextmanager
def told() -> Iterator[None]:
    """Turn what a user can cause into a message and exit code 2."""
    from monitors.artifacts import ArtifactError  # noqa: PLC0415
    from monitors.hook_points import HookPointError  # noqa: PLC0415
    from server.engines.base import EngineError  # noqa: PLC0415

    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in _EXTRA:
            raise
        typer.echo(f"interlock: the lab needs {error.name}: pip install 'interlock[lab]'", err=True)
        raise typer.Exit(2) from error
    except (ArtifactError, HookPointError, EngineError, OSError, ValueError) as error:
        typer.echo(f"interlock: {error}", err=True)
        raise typer.Exit(2) from error


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error with count and time left; called with (done, total)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update
