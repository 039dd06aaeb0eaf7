"""How much the causal card measures, and what that costs."""

from dataclasses import dataclass
from typing import Literal

_NUM_POSITIONS = 2
DOSES = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5)  # in class gaps
MATCHING_STEPS = 5  # passes over the neutral texts, at most, to match one null edit's KL


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of one mode."""

    mode: Literal["quick", "full"]
    num_per_class: int  # prompts that are intervened on
    num_random: int  # null edits in random directions
    num_sham_edits: int  # null edits in the directions of sham monitors
    num_shams: int  # sham monitors to read against
    num_random_reads: int  # random directions to read against, in draws of 40
    num_neutral: int
    match_kl: bool
    site_offsets: tuple[int, ...]  # layers
    num_later: int  # layers at which probes are fitted that should follow the edits

    def num_passes(self, sizes: "Sizes") -> int:
        """Sequences through the model at most, each about as long as a prompt."""
        both = sizes.num_positive + sizes.num_negative
        nulls = self.num_random + self.num_sham_edits + sizes.num_unrelated
        doses = len(DOSES) - 1  # none is nothing
        edits = both * (1 + 1 + 1 + doses + nulls + sizes.num_sites + _NUM_POSITIONS)
        faithfulness = 3 * sizes.num_positive + 4 * sizes.num_negative + sizes.num_differentiated
        neutral = 3 * sizes.num_neutral
        if self.match_kl:
            edits += both * self.num_random
            neutral += 2 * (1 + self.num_random * MATCHING_STEPS) * sizes.num_neutral
        readings = 2 * sizes.num_select + 3 * both if sizes.num_select else 0
        return (edits + faithfulness) * sizes.num_sequences + neutral + readings + 3 * sizes.num_harmful


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a plan is applied to: numbers of examples, but where another unit is named."""

    num_positive: int
    num_negative: int
    num_neutral: int
    num_harmful: int
    num_select: int  # that later probes are fitted on; 0 if nothing is read
    num_differentiated: int  # negatives, where behaviour has a gradient
    num_sequences: int  # per example
    num_sites: int  # hook points
    num_unrelated: int  # monitors


QUICK = Plan("quick", 32, 9, 3, 39, 1, 16, match_kl=False, site_offsets=(-2, 2), num_later=1)
FULL = Plan("full", 64, 20, 5, 39, 5, 24, match_kl=True, site_offsets=(-2, -1, 1, 2), num_later=3)
