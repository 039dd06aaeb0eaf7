"""A monitor tried on a few made-up tokens, through the engine that serves: whether it gives finite scores, in time."""

import math
import secrets
from collections.abc import Callable
from contextlib import aclosing

from guard.types import Phase
from server.engines.base import Engine, EngineRequest, SamplingParams
from server.policy_store import InForce

_IDS = tuple(range(1, 9))  # any tokens will do: what is asked is whether there is a score
_SAMPLING = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)


async def works(monitor: str, engine: Engine, in_force: InForce, clock: Callable[[], float]) -> bool:
    """Raises what the engine raises."""
    scorer = in_force.scoring.scorer(frozenset((phase, monitor) for phase in Phase), reference=0)
    request = EngineRequest(f"probe-{secrets.token_hex(8)}", _IDS, _SAMPLING)
    async with aclosing(engine.generate(request)) as steps:
        async for step in steps:
            if not step.num_scored:
                continue
            started = clock()
            scores = scorer.score(step).scores.get(monitor, ())
            is_late = clock() - started > in_force.policy.budget_s
            if is_late or not scores or not all(score is None or math.isfinite(score) for score in scores):
                return False
    return True
