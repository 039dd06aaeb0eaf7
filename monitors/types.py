"""The vocabulary of the monitors: hook points, and what a causal test can find."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class HookKind(StrEnum):
    """Where in a decoder block the residual stream is read or written (TransformerLens names)."""

    RESID_PRE = "hook_resid_pre"  # the block's input
    RESID_POST = "hook_resid_post"  # the block's output


_HOOK_POINT = re.compile(r"blocks\.(\d+)\.(hook_resid_pre|hook_resid_post)")


@dataclass(frozen=True, slots=True, order=True)
class HookPoint:
    """A named place in the model, written `blocks.12.hook_resid_post`. Layers are never bare numbers."""

    layer: int
    kind: HookKind = HookKind.RESID_POST

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the field's spelling. Raises ValueError with the allowed form."""
        match = _HOOK_POINT.fullmatch(text)
        if match is None:
            raise ValueError(
                f"unknown hook point {text!r}; expected 'blocks.<layer>.hook_resid_pre' or 'blocks.<layer>.hook_resid_post'"
            )
        return cls(int(match[1]), HookKind(match[2]))

    def __str__(self) -> str:
        return f"blocks.{self.layer}.{self.kind}"


class CausalVerdict(StrEnum):
    """What a causal test found (reference: science, 4.2)."""

    INVALID = "invalid"  # it does not even read the concept
    READOUT = "readout"  # it reads the concept and does not move behaviour
    WRITE_HANDLE = "write-handle"  # writing it is sufficient for the behaviour
    NECESSARY = "necessary"  # removing it removes the behaviour
    CAUSAL = "causal"  # both
