"""One response being generated, as the scheduler sees it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from monitors.steering import Edit
from server.engines.base import EngineRequest, TokenLogprob
from server.engines.detokenize import SettledText
from server.engines.transformers.sampling import Drawn, Sampler

PromptLogprob = tuple[TokenLogprob, tuple[TokenLogprob, ...]] | None


@dataclass(slots=True)
class ActiveSteering:
    """A steering edit in force on a sequence."""

    edit: Edit
    remaining: int | None  # response tokens still to be fed under it; None: until the end


@dataclass(slots=True, eq=False)
class Sequence:
    """State of one request. `num_fed` positions of its row are filled: prompt tokens, then response tokens."""

    request: EngineRequest
    max_tokens: int
    sampler: Sampler
    text: SettledText
    describe: Callable[[Drawn], tuple[TokenLogprob, tuple[TokenLogprob, ...]]]
    num_fed: int = 0
    num_generated: int = 0
    logits: Tensor | None = None  # [vocab] after the last fed token: the next one is drawn from it
    greedy_next: int | None = None  # argmax of `logits`, where that is all the sampling there is
    refeed_prompt_end: bool = False  # steering began on the prompt: feed its last token again, steered
    steering: dict[str, ActiveSteering] = field(default_factory=dict)  # by vector name
    monitor_set: str = ""  # digest of the bank that the prompt's first chunk was read with
    prompt_values: list[NDArray[np.float32]] = field(
        default_factory=list
    )  # for the prefix cache, until the prompt is fed
    prompt_logprobs: list[PromptLogprob] | None = None

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def prompt_done(self) -> bool:
        return self.num_fed >= self.num_prompt

    @property
    def waits_for_grammar(self) -> bool:
        """Whether it can't go on before it is known what its grammar allows. Its prompt can be fed meanwhile."""
        return self.prompt_done and self.sampler.is_waiting

    @property
    def edits(self) -> tuple[Edit, ...]:
        return tuple(active.edit for active in self.steering.values())

    def steer(self, active: ActiveSteering) -> None:
        """Set steering. If no response token was drawn yet, the end of the prompt is fed again under it, so that the first one is steered too."""
        self.steering[active.edit.vector.name] = active
        if self.prompt_done and self.num_generated == 0:
            self.refeed_prompt_end = True

    def count_steered_token(self) -> None:
        """One response token was fed: end the steerings whose time is up."""
        for name, active in list(self.steering.items()):
            if active.remaining is not None:
                active.remaining -= 1
                if active.remaining <= 0:
                    del self.steering[name]
