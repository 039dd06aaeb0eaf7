"""A request that was admitted, and who asked for it: what the answer is made from."""

from collections.abc import Mapping
from dataclasses import dataclass

from guard.policy import Policy
from guard.types import Subject
from monitors.base import Monitor
from server.keys.types import BlockStyle
from server.pipeline import Choice


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that may run."""

    decision_id: str
    created: int  # Unix seconds
    policy: Policy  # kept until the request ends, whatever is reloaded meanwhile
    subject: Subject
    param: str  # the field that holds the prompt
    num_prompt_tokens: int
    choices: tuple[Choice, ...]
    monitors: tuple[Monitor, ...]  # in force when it was admitted
    deadline: float | None = None  # by the service's clock
    shows_rules: bool = False  # to a key that may debug
    block_style: BlockStyle = BlockStyle.OPENAI


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and for what beside the reply. The same for every endpoint."""

    request_id: str
    metadata: Mapping[str, str]
    end_user: str = ""  # the client's name for its own user
    stream: bool = False
    all_scores: bool = False  # score by every monitor, not only by those that rules read
