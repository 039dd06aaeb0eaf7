"""What is read of examples while an edit is in force: their rows at later layers, and the scores of monitors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from monitors.base import Monitor
from monitors.lab.activations import cut
from monitors.lab.causal.edits import Edit
from monitors.lab.causal.forward import Passage, edit_start, run
from monitors.lab.causal.job import Verification
from monitors.lab.causal.reading import log_odds
from monitors.lab.dataset import Example
from monitors.lab.pooling import in_scope
from monitors.lab.scoring import Scorer
from monitors.lab.statistics import Floats
from monitors.types import HookPoint


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """Of n examples, in order."""

    rows: Mapping[HookPoint, Floats]  # pooled over the phase, [n, d_model]
    scores: Floats  # [n, num_monitors]; probabilities as log-odds; not finite where a monitor reads nothing


class Reader:
    """Runs examples, replies included, and reads them. Edits begin where those of behaviour do."""

    def __init__(
        self,
        job: Verification,
        edited: Sequence[HookPoint],
        later: Sequence[HookPoint],
        monitors: Sequence[Monitor],
        step: Callable[[int], None],
    ) -> None:
        self._job, self._edited, self._later, self._step = job, tuple(edited), tuple(later), step
        self._scorer = Scorer(monitors) if monitors else None
        read = (point for monitor in monitors for point in monitor.hook_points)
        self._watched = tuple(dict.fromkeys((*later, *read)))

    def read(self, examples: Sequence[Example], edit: Edit | None) -> Readings:
        """Raises ValueError for an example that has no token in the phase."""
        job = self._job
        passages = []
        for owner, example in enumerate(examples):
            tokens = cut(job.subject.tokenize(example), job.subject.max_tokens)
            start = edit_start(tokens, from_last=job.from_last, exclude_first=job.recipe.exclude_first)
            passages.append(Passage(tokens, start, owner=owner))
        pooled: dict[HookPoint, list[Floats]] = {
            point: [np.zeros(0) for _ in examples] for point in self._later
        }
        scores: list[Floats] = [np.zeros(0) for _ in examples]

        def take(index: int, rows: Mapping[HookPoint, Tensor]) -> None:
            tokens = passages[index].tokens
            for point, its in pooled.items():
                own = in_scope(
                    rows[point], examples[index], tokens, job.recipe.phase, job.recipe.exclude_first
                )
                its[index] = (own.mean(dim=0) if job.pooling == "mean" else own[-1]).double().numpy()
            if self._scorer is not None:
                running = self._scorer.of_rows(tokens, rows)[job.recipe.phase]
                scores[index] = running.max(axis=0) if job.reading_statistic == "max" else running[-1]

        run(job.subject, passages, self._edited, edit, watched=self._watched, take=take, step=self._step)
        return Readings({point: np.stack(its) for point, its in pooled.items()}, log_odds(np.stack(scores)))
