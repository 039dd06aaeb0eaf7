"""The card's section 'fit': what was tried, and why this was chosen."""

from pydantic import Field

from monitors.lab.sections.base import CardPart, Interval, Phase, RandomDirections, Section, Statistic
from monitors.lab.sections.probability import Probability


class AggregatorPart(CardPart):
    kind: str
    alpha: float | None = None
    window: int | None = None
    temperature: float | None = None


class RecipePart(CardPart):
    """All that it takes to fit the monitor again on other examples."""

    trainer: str  # a key of TRAINERS
    hook_points: tuple[str, ...]
    phase: Phase
    aggregator: AggregatorPart  # at run time
    trained_with: AggregatorPart | None = None
    exclude_first: int = 0
    settings: dict[str, float] = Field(
        default_factory=dict
    )  # of the trainer: penalty, hidden width, epochs ...
    sae_sha256: str | None = None  # of the SAE's files, if features of one were chosen


class Candidate(CardPart):
    """One point of the sweep, by cross-validation over groups."""

    recipe: RecipePart
    auroc: Interval  # of the statistic, out of fold
    tpr_at_1pct: float | None = None  # None: too few negatives


class LayerBaseline(CardPart):
    """Random directions at one hook point, over the same examples."""

    hook_point: str
    random: RandomDirections


class FitSection(Section):
    statistic: Statistic = "max"  # of the running score over a request, by which candidates were compared
    num_positive: int
    num_groups: int
    num_folds: int
    num_repeated: int = 0  # examples whose text another group has too: cross-validation flatters by them
    recipe: RecipePart
    candidates: tuple[Candidate, ...]
    tfidf_auroc: Interval  # TF-IDF by the same folds
    random: tuple[LayerBaseline, ...] = ()
    probability: Probability | None = None  # by the chosen candidate's scores out of fold
