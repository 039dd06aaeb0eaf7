"""A recipe is all that it takes to fit a monitor again on other examples: for another fold, another data set, other labels."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from monitors.aggregate import AggregatorSpec
from monitors.base import Monitor
from monitors.lab.pooling import Pooled
from monitors.lab.sae.source import SaeSource
from monitors.lab.sections.base import Phase
from monitors.lab.sections.fit import AggregatorPart, RecipePart
from monitors.lab.statistics import Ints
from monitors.lab.trainers import TRAINERS
from monitors.lab.trainers.base import Task
from monitors.types import HookPoint


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a monitor is fitted, and how it is run."""

    trainer: str  # a key of TRAINERS
    hook_points: tuple[HookPoint, ...]
    phase: Phase
    aggregator: AggregatorSpec  # at run time
    exclude_first: int = 0
    settings: Mapping[str, float] = field(default_factory=dict)  # of the trainer
    sae: SaeSource | None = field(default=None, compare=False, repr=False)  # for trainers that need one

    def __post_init__(self) -> None:
        if self.trainer not in TRAINERS:
            raise ValueError(f"unknown trainer {self.trainer!r}; known: {', '.join(TRAINERS)}")
        known = TRAINERS[self.trainer].settings
        if unknown := self.settings.keys() - known.keys():
            raise ValueError(
                f"trainer {self.trainer!r} has no setting {', '.join(sorted(unknown))}; it has {', '.join(known)}"
            )
        allowed = TRAINERS[self.trainer].aggregators
        if self.aggregator.kind not in allowed:
            raise ValueError(
                f"trainer {self.trainer!r} can't be aggregated by {self.aggregator.kind!r}; "
                f"allowed: {', '.join(sorted(allowed))}"
            )

    def to_part(self) -> RecipePart:
        """As a card holds it."""
        trained_with = TRAINERS[self.trainer].trained_with(self.settings)
        return RecipePart(
            trainer=self.trainer,
            hook_points=tuple(map(str, self.hook_points)),
            phase=self.phase,
            aggregator=AggregatorPart(**asdict(self.aggregator)),
            trained_with=AggregatorPart(**asdict(trained_with)),
            exclude_first=self.exclude_first,
            settings=dict(self.settings),
            sae_sha256=self.sae.sha256 if self.sae else None,
        )

    @classmethod
    def from_part(cls, part: RecipePart, sae: SaeSource | None = None) -> "Recipe":
        """The reverse; the SAE is given apart. Raises ValueError for a trainer that this version doesn't have."""
        given = part.aggregator.model_dump(exclude_none=True)
        return cls(
            part.trainer,
            tuple(map(HookPoint.parse, part.hook_points)),
            part.phase,
            AggregatorSpec(**given),
            part.exclude_first,
            part.settings,
            sae,
        )


def fit(
    recipe: Recipe,
    pooled: Pooled,
    indices: Sequence[int],
    labels: Ints,
    *,
    name: str = "monitor",
    seed: int = 0,
) -> Monitor:
    """Fit on the examples at `indices`; labels[k] belongs to indices[k]. The same seed gives the same monitor.

    Raises ValueError if one class is missing.
    """
    if not 0 < labels.sum() < len(labels):
        raise ValueError("both positive and negative examples are needed to fit")
    trainer = TRAINERS[recipe.trainer]
    settings = {**trainer.settings, **recipe.settings}
    task = Task(
        pooled,
        tuple(indices),
        labels,
        recipe.hook_points,
        recipe.phase,
        recipe.exclude_first,
        seed,
        recipe.sae,
    )
    trained_with = trainer.trained_with(settings)
    return Monitor(
        name,
        trainer.train(task, settings),
        recipe.aggregator,
        trainer.link,
        recipe.exclude_first if recipe.phase == "prompt" else 0,
        trained_with=None if trained_with == recipe.aggregator else trained_with,
    )
