"""A series of scores as text, as policy tests write it: `0.1x12 0.95` is twelve times 0.1, then 0.95.

`nan` is a broken score; `-` is a token outside the monitor's scope.
"""

import re
from math import isinf

from guard.types import Score

MAX_TOKENS = 100_000
_ITEM = re.compile(r"(?P<value>-|nan|[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?)(x(?P<times>\d+))?", re.ASCII)


def parse_series(text: str) -> tuple[Score, ...]:
    """Raises ValueError."""
    scores: list[Score] = []
    for item in text.split():
        found = _ITEM.fullmatch(item)
        if not found:
            raise ValueError(
                f"'{item[:40]}' is not a score; write for example 0.95, 0.1x12 (twelve times), nan, or - (none)"
            )
        value, times = found["value"], found["times"] or "1"
        if len(times) > len(str(MAX_TOKENS)) or len(scores) + int(times) > MAX_TOKENS:
            raise ValueError(f"a series has at most {MAX_TOKENS:,} tokens")
        if not int(times):
            raise ValueError(f"'{item[:40]}' is no token; a score is repeated at least once")
        score = None if value == "-" else float(value)
        if score is not None and isinf(score):
            raise ValueError(f"'{item[:40]}' is too large for a score; for a broken one, write nan")
        scores += [score] * int(times)
    return tuple(scores)
