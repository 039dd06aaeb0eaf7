"""How much the causal card measures, and what that costs."""

from dataclasses import dataclass
from typing import Literal

DOSES = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5)  # in class gaps
MATCHING_STEPS = 4  # passes over the neutral texts to match one null edit's KL


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of one mode (science 4.2)."""

    mode: Literal["quick", "full"]
    num_per_class: int  # prompts that are intervened on
    num_random: int  # null edits in random directions
    num_sham_edits: int  # null edits in the directions of sham monitors
    num_shams: int  # sham monitors to read against
    num_random_reads: int  # random directions to read against, in draws of 40
    num_neutral: int
    match_kl: bool
    site_offsets: tuple[int, ...]  # layers

    def num_passes(
        self, num_positive: int, num_negative: int, num_neutral: int, sequences: int, num_sites: int
    ) -> int:
        """Sequences through the model, each about as long as a prompt."""
        both = num_positive + num_negative
        nulls = self.num_random + self.num_sham_edits
        edits = both * (1 + 1 + (len(DOSES) - 1) + 1 + nulls + num_sites) + 4 * num_negative
        neutral = 3 * num_neutral
        if self.match_kl:
            edits += both * self.num_random
            neutral += 2 * self.num_random * (MATCHING_STEPS + 1) * num_neutral
        return edits * sequences + neutral


QUICK = Plan("quick", 32, 9, 3, 39, 1, 16, match_kl=False, site_offsets=(-2, 2))
FULL = Plan("full", 64, 20, 5, 39, 5, 24, match_kl=True, site_offsets=(-2, -1, 1, 2))
