"""The lines of a decision log, one by one, however long the file: none of it is kept."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_LINE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class LogLine:
    number: int
    data: bytes  # empty if it was too long to be read
    complete: bool  # it ends; a last line that doesn't was torn by a crash, or is being written

    @property
    def too_long(self) -> bool:
        return not self.data


def log_lines(
    path: Path, on_read: Callable[[int], None], max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[LogLine]:
    """Every line that is not blank. `on_read` is told how many bytes each took. Raises OSError."""
    with path.open("rb") as stream:
        number = 0
        while data := stream.readline(max_line_bytes):
            number += 1
            size, too_long = len(data), False
            while not data.endswith(b"\n") and (more := stream.readline(max_line_bytes)):
                data, too_long = more, True
                size += len(more)
            on_read(size)
            if too_long or data.strip():
                yield LogLine(number, b"" if too_long else data, data.endswith(b"\n"))
