"""How far the residual stream has drifted since the task was given: z_t = sum over layers of w_l . (x_t - x_ref), + b.

TaskTracker (2406.00799): what is read after the user's own request, a document or the result of a tool, should not change
what the model is about to do. The reference is the last token of the first user message.
"""

from dataclasses import dataclass
from typing import ClassVar

from monitors.base import Column
from monitors.linear import Linear


@dataclass(frozen=True, slots=True, eq=False)
class Delta(Linear):
    """A linear probe of the difference to the request's reference token, on one or more layers."""

    kind: ClassVar[str] = "delta"

    @property
    def columns(self) -> tuple[Column, ...]:
        """Without the bias, which the difference would cancel."""
        return tuple(map(Column, self.hook_points, self.weight))

    @property
    def relative_bias(self) -> float:
        return float(self.bias)
