"""What is verified, on what, and how."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields

from monitors.base import Monitor
from monitors.lab.activations import Progress, no_progress
from monitors.lab.causal.behaviour import Behaviour
from monitors.lab.causal.plan import Plan
from monitors.lab.dataset import Example
from monitors.lab.pooling import Pooling
from monitors.lab.recipes import Recipe
from monitors.lab.sections.base import Statistic
from monitors.lab.subject import Subject
from monitors.types import HookPoint


@dataclass(frozen=True, slots=True, eq=False)
class Subjects:
    """The examples of a verification. Only `test` is required."""

    test: tuple[Example, ...]
    train: tuple[
        Example, ...
    ] = ()  # class means, shams and baselines are fitted on these; without, on half of test
    neutral: tuple[Example, ...] = ()  # without: negatives that are not tested
    harmful: tuple[Example, ...] = ()  # that should be refused, for the safety regression
    masked: tuple[Example, ...] = ()  # test examples with the telling text masked, labelled
    paraphrased: tuple[Example, ...] = ()  # test examples in other words or another language, labelled

    @property
    def others(self) -> dict[str, tuple[Example, ...]]:
        """All that were given but `test`, by name."""
        parts = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "test"}
        return {name: part for name, part in parts.items() if part}


@dataclass(frozen=True, slots=True, eq=False)
class Verification:
    """What is verified, and how."""

    monitor: Monitor
    subject: Subject
    data: Subjects
    plan: Plan
    recipe: Recipe  # shams are fitted by it
    behaviour: Behaviour | None
    refusal: Behaviour | None = None  # how a refusal starts; with harmful examples
    unrelated: tuple[Monitor, ...] = ()  # of other concepts, on the same model
    pooling: Pooling = "mean"  # over which tokens class means are taken; last: edits begin there, too
    statistic: Statistic = "max"  # of the running score, by which reading is told; vectors: last
    seed: int = 0
    announce: Callable[[int], None] = field(default=lambda passes: None)  # the cost, before the run
    reading: Progress = no_progress
    intervening: Progress = no_progress

    @property
    def from_last(self) -> bool:
        """Edits begin at the prompt's last token, where a reply is decided, not at the first in scope."""
        return self.recipe.phase == "response" or self.pooling == "last"

    @property
    def reading_statistic(self) -> Statistic:
        """An encoder's early tokens see the later ones, so that its running score has one value that counts."""
        return self.statistic if self.subject.is_causal else "last"


def nearby(point: HookPoint, job: Verification) -> tuple[HookPoint, ...]:
    """The places around at which the same direction is tried."""
    if job.behaviour is None:
        return ()
    layers = [point.layer + offset for offset in job.plan.site_offsets]
    return tuple(
        HookPoint(layer, point.kind) for layer in layers if 0 <= layer < len(job.subject.blocks.layers)
    )
