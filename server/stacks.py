"""Where every thread and every task of this process stands, and where an exception was raised: files, lines and functions, never a value."""

import asyncio
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

_INNER = ("cr_await", "gi_yieldfrom", "ag_await")
_FRAMES = ("cr_frame", "gi_frame", "ag_frame")


def stacks() -> str:
    """Of all threads, then of all tasks of the running loop; outermost call first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = [
        f"thread {names.get(ident, ident)}\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()  # noqa: SLF001  # the documented way (sys)
    ]
    tasks = sorted(asyncio.all_tasks(), key=asyncio.Task.get_name)
    parts += [f"task {task.get_name()}\n{''.join(_awaits(task.get_coro()))}" for task in tasks]
    return "\n".join(parts)


def raised_at(error: BaseException) -> list[str]:
    """Outermost call first. What may be logged of an exception beside its type: its message may hold text of a request."""
    return [
        f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)
    ]


def _awaits(awaited: Any) -> Iterator[str]:
    """A task that waits has a frame for each coroutine that awaits the next."""
    while awaited is not None:
        frame: FrameType | None = _first(awaited, _FRAMES)
        if frame is not None:
            code = frame.f_code
            yield f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_qualname}\n'
        awaited = _first(awaited, _INNER)


def _first(owner: object, names: tuple[str, ...]) -> Any:
    return next((value for name in names if (value := getattr(owner, name, None)) is not None), None)
