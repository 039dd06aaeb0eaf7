"""Holding one response to a grammar: which tokens may come next, found out beside the model's pass."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from server.engines.base import RequestRefused


@dataclass(frozen=True, slots=True)
class CompiledGrammar:
    """A grammar over an engine's vocabulary. Responses that are held to it don't share what they have said."""

    matcher: LLMatcher  # at its beginning, and left there
    num_ids: int
    threads: Executor

    def begin(self, on_ready: Callable[[], None]) -> "Matching":
        """For one response. `on_ready` is called on another thread, whenever the next tokens are known."""
        return Matching(self.matcher.deep_copy(), self.num_ids, self.threads, on_ready)


class Matching:
    """Of one response. Ask `allowed`, draw, tell it with `take`, and so on; `is_ready` says whether asking would wait."""

    def __init__(
        self, matcher: LLMatcher, num_ids: int, threads: Executor, on_ready: Callable[[], None]
    ) -> None:
        self._matcher = matcher
        self._num_ids = num_ids
        self._threads = threads
        self._on_ready = on_ready
        self._allowed = self._begin(None)

    @property
    def is_ready(self) -> bool:
        return self._allowed.done()

    def allowed(self) -> NDArray[np.bool_]:
        """Whether each token may come next, [num_ids]; at least one may. Raises RequestRefused where the grammar gives out."""
        return self._allowed.result()

    def take(self, token_id: int) -> None:
        """An allowed token was drawn."""
        self._allowed = self._begin(token_id)

    def _begin(self, token_id: int | None) -> Future[NDArray[np.bool_]]:
        future = self._threads.submit(self._after, token_id)
        future.add_done_callback(lambda _: self._on_ready())
        return future

    def _after(self, token_id: int | None) -> NDArray[np.bool_]:
        """llguidance lets the other threads run while it finds the mask. After an error its mask is the end of the text."""
        matcher = self._matcher
        if token_id is not None:
            matcher.consume_token(token_id)
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_error() or not bits.any():
            raise RequestRefused("the reply can't be held to its schema any further: it is too complex here")
        return np.unpackbits(bits, count=self._num_ids, bitorder="little").view(np.bool_)
