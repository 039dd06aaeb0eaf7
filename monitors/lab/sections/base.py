"""What the sections of a card have in common."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

Phase = Literal["prompt", "response"]
Statistic = Literal["max", "last"]  # what a policy compares: max(prompt.x) or last(prompt.x)


class CardPart(BaseModel):
    """Strict and finite: a card is read back by other programs."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Interval(CardPart):
    """A figure with its confidence interval (95 % unless the section says otherwise)."""

    value: float
    low: float
    high: float


class Section(CardPart):
    """One step's findings, with what they rest on."""

    weights_sha256: str  # of the monitor that was looked at; findings on other weights don't count
    data_sha256: str  # `dataset_digest` of the examples
    num_examples: int
    seed: int = 0

    def bound_to(self, weights_sha256: str) -> Self:
        """This section about a monitor with these weights."""
        return self.model_copy(update={"weights_sha256": weights_sha256})


class RandomDirections(CardPart):
    """Directions drawn from the activations' covariance, scored like the monitor; each with the better of its two signs."""

    num_directions: int
    mean_auroc: float
    p95_auroc: float
    best_auroc: float
