"""Scores of monitors on collected activations, by the very code that scores them in production."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monitors.bank import Bank
from monitors.base import Monitor
from monitors.lab.activations import SHARD, Activations
from monitors.lab.sections.base import Phase, Statistic
from monitors.lab.subject import Tokens
from monitors.tracker import TrackerPlan
from monitors.types import HookPoint

_MAX_VALUES = 1 << 26  # of all monitors and tokens that are scored at once

Floats = NDArray[np.float64]


class Scorer:
    """Runs monitors over examples: the bank on the rows, then a tracker per phase."""

    def __init__(self, monitors: Sequence[Monitor]) -> None:
        self._bank = Bank(monitors, "cpu")
        self._plan = TrackerPlan(self._bank.monitors)

    def running(self, acts: Activations, index: int) -> dict[Phase, Floats]:
        """The running score after each token, by phase: [n_tokens of the phase, n_monitors].

        Tokens out of scope have -inf; a monitor that failed has NaN.
        """
        return self._running(acts, [index])[0]

    @torch.inference_mode()
    def of_rows(self, tokens: Tokens, rows: Mapping[HookPoint, Tensor]) -> dict[Phase, Floats]:
        """As `running`, of rows that are at hand: [n_tokens, d_model] by hook point."""
        buffer = self._bank.begin(len(tokens.ids))
        for point in self._bank.hook_points:
            self._bank.read(point, rows[point], buffer)
        return self._tracked(tokens, self._bank.end(buffer).numpy())

    def maxima(self, acts: Activations, phase: Phase) -> Floats:
        """What `max(prompt.x)` or `max(response.x)` comes to: [n_examples, n_monitors]; -inf where nothing was in scope."""
        return self._each(acts, phase, lambda scores: scores.max(axis=0))

    def lasts(self, acts: Activations, phase: Phase) -> Floats:
        """What `last(prompt.x)` or `last(response.x)` comes to: [n_examples, n_monitors]; -inf where nothing was in scope."""
        return self._each(acts, phase, lambda scores: scores[-1])

    def statistic(self, acts: Activations, phase: Phase, statistic: Statistic) -> Floats:
        """What a policy compares: `maxima` or `lasts`."""
        return self.maxima(acts, phase) if statistic == "max" else self.lasts(acts, phase)

    def _each(self, acts: Activations, phase: Phase, reduce: Callable[[Floats], Floats]) -> Floats:
        found = np.full((len(acts.examples), len(self._bank.monitors)), -np.inf)
        for indices in self._parts(acts):
            for index, scores in zip(indices, self._running(acts, indices), strict=True):
                if len(scores[phase]):
                    found[index] = reduce(scores[phase])
        return found

    def _parts(self, acts: Activations) -> Iterator[range]:
        """Neighbouring examples, of one shard and with so many values together as memory may hold."""
        at_most = _MAX_VALUES // max(1, self._bank.num_columns)  # tokens
        start, num_tokens = 0, 0
        for index, tokens in enumerate(acts.tokens):
            if index > start and (index % SHARD == 0 or num_tokens + len(tokens.ids) > at_most):
                yield range(start, index)
                start, num_tokens = index, 0
            num_tokens += len(tokens.ids)
        if num_tokens:
            yield range(start, len(acts.tokens))

    @torch.inference_mode()
    def _running(self, acts: Activations, indices: Sequence[int]) -> list[dict[Phase, Floats]]:
        sizes = [len(acts.tokens[index].ids) for index in indices]
        buffer = self._bank.begin(sum(sizes))
        for point in self._bank.hook_points:
            self._bank.read(point, torch.cat(acts.batch(point, indices)), buffer)
        parts = np.split(self._bank.end(buffer).numpy(), np.cumsum(sizes)[:-1])
        found: list[dict[Phase, Floats]] = []
        for index, values in zip(indices, parts, strict=True):
            found.append(self._tracked(acts.tokens[index], values))
        return found

    def _tracked(self, tokens: Tokens, values: NDArray[np.float32]) -> dict[Phase, Floats]:
        prompt, response = self._plan.prompt(tokens.reference), self._plan.response()
        if tokens.reference is not None:
            response.refer(values[tokens.reference])
        return {
            "prompt": prompt.push(values[: tokens.num_prompt]),
            "response": response.push(values[tokens.num_prompt :]),
        }
