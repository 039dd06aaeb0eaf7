"""What stands in line: claims on the engine's rows, and why one is turned away."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

Reason = Literal["queue_full", "queue_timeout", "draining"]


class Priority(IntEnum):
    """Within a tenant; between tenants, weights decide."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


@dataclass(frozen=True, slots=True)
class Standing:
    """Who stands in line. Set from the key by the server."""

    tenant: str = "default"
    weight: float = 1.0  # of the tenant: its share, beside those of others who wait
    priority: Priority = Priority.NORMAL


class TurnedAwayError(Exception):
    """A request may not wait, or has waited in vain."""

    def __init__(self, reason: Reason, retry_after_s: float) -> None:
        super().__init__(reason)
        self.reason: Reason = reason
        self.retry_after_s = retry_after_s


class DeadlineError(Exception):
    """A request took longer than the server gives any."""


class ClientGoneError(Exception):
    """Who waited has left."""
