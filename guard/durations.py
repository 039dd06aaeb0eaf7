"""Durations as people write them in files: a number with its unit."""

import re

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def seconds(duration: str) -> float:
    """`5ms` -> 0.005. Raises ValueError."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)(us|ms|s)", duration)
    if not found:
        raise ValueError("write a duration with its unit (us, ms or s), for example 5ms")
    return float(found[1]) * _UNITS[found[2]]


def checked(duration: str) -> str:
    """The same text. Raises ValueError if it is no duration."""
    seconds(duration)
    return duration
