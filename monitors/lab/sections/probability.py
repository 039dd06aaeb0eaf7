"""How a score is told as a probability: part of the sections 'fit' and 'evaluation'."""

from typing import Literal

from monitors.lab.sections.base import CardPart


class ReliabilityBin(CardPart):
    num_examples: int
    probability: float  # mean of what was told
    positive: float  # share that was


class ProbabilityMap(CardPart):
    """From the score before its link to a probability, at the base rate of the examples that it was fitted on."""

    method: Literal["platt", "isotonic"]
    base_rate: float  # share of positives among the examples
    slope: float = 0.0  # Platt: log-odds = slope * score + intercept
    intercept: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()  # isotonic: (score, probability), linear in between


class Probability(ProbabilityMap):
    """With its errors, measured on examples that the map was not fitted on."""

    brier: float  # mean squared error
    calibration_error: float  # mean distance between told and true share, over bins of like probability
    reliability: tuple[ReliabilityBin, ...]
