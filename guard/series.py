"""A series of scores as text, as policy tests write it: `0.1x12 0.95` is twelve times 0.1, then 0.95.

`nan` is a broken score; `-` is a token outside the monitor's scope.
"""

import re

from guard.types import Score

MAX_TOKENS = 100_000
_ITEM = re.compile(r"(?P<value>-|nan|[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?)(x(?P<times>\d{1,6}))?")


def parse_series(text: str) -> tuple[Score, ...]:
    """Raises ValueError."""
    scores: list[Score] = []
    for item in text.split():
        found = _ITEM.fullmatch(item)
        if not found:
            raise ValueError(
                f"'{item}' is not a score; write for example 0.95, 0.1x12 (twelve times), nan, or - (none)"
            )
        value, times = found["value"], int(found["times"] or 1)
        if len(scores) + times > MAX_TOKENS:
            raise ValueError(f"a series has at most {MAX_TOKENS:,} tokens")
        scores += [None if value == "-" else float(value)] * times
    return tuple(scores)
