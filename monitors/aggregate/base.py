"""What an aggregator is: the running state of k values, on the host, streaming, in float64."""

from itertools import pairwise
from typing import ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Aggregator(Protocol):
    """The state of k values. `deepcopy` is a snapshot.

    State is O(1) per value (O(window) for the rolling ones), and results do not depend on how the tokens were cut into chunks.
    """

    def update(self, z: Array) -> Array:
        """Running aggregates of the next n tokens. z: [n, k], n >= 1, finite -> [n, what it makes of k]; z may be overwritten."""
        ...

    def merge(self, later: Self) -> None:
        """Go on as if the tokens of `later` had followed. `later` is left as it is.

        Raises ValueError where that does not follow from the two states (`Sequential`).
        """
        ...


class Sequential:
    """An aggregator whose states can't be merged."""

    why_not: ClassVar[str]

    def merge(self, later: Self) -> None:
        raise ValueError(
            f"{type(self).__name__} states can't be merged: {self.why_not}. Keep the later tokens' values, and update with them"
        )


def accumulate(ufunc: np.ufunc, z: Array) -> None:
    """Like ufunc.accumulate(z, axis=0, out=z), which is slower for the few, long rows that there are here."""
    for before, row in pairwise(z):
        ufunc(row, before, out=row)


def counts(before: int, num_tokens: int) -> Array:
    """How many tokens were seen after each of the next ones: [num_tokens, 1]."""
    return np.arange(before + 1.0, before + num_tokens + 1)[:, None]
