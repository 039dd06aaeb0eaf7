"""Sizes as people write them: a number of bytes with its unit."""

import re

_UNITS = {"MiB": 2**20, "GiB": 2**30, "MB": 10**6, "GB": 10**9}


def parse_size(text: str) -> int:
    """`4GiB` -> bytes. Raises ValueError."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?) ?(MiB|GiB|MB|GB)", text)
    if not found or not float(found[1]):
        raise ValueError("write a size with its unit (MiB, GiB, MB or GB), for example 4GiB")
    return int(float(found[1]) * _UNITS[found[2]])


def written(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
