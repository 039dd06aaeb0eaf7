"""canary.json: token sequences with the score that a monitor must give them, to be checked on the serving engine."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from monitors.artifacts.files import ArtifactError, Sha256, read_bytes

CANARY_FILE = "canary.json"
MAX_CANARY_TOKENS = 31  # less than a block of a prefix cache, so that each check is computed anew
CANARY_REFERENCE = 1  # which of its tokens monitors of drift measure from
_MAX_BYTES = 1 << 20


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CanarySequence(_Strict):
    """A prompt, and the largest running score over it."""

    ids: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=MAX_CANARY_TOKENS)]
    maximum: float


class Canary(_Strict):
    """All of one monitor. Scores were computed in float32."""

    schema_: Literal["interlock.canary/v1"] = Field(default="interlock.canary/v1", alias="schema")
    monitor: str
    weights_sha256: Sha256
    sequences: Annotated[tuple[CanarySequence, ...], Field(min_length=1, max_length=64)]
    tolerance: Annotated[float, Field(gt=0)] = 1e-3  # absolute, plus the same relative to the score


def read_canary(folder: Path, root: Path) -> Canary | None:
    """The canaries beside a monitor.json, or None. Raises ArtifactError."""
    path = folder / CANARY_FILE
    if not path.exists():
        return None
    try:
        return Canary.model_validate_json(read_bytes(path, root, _MAX_BYTES))
    except ValidationError as error:
        problem = error.errors()[0]
        raise ArtifactError(
            f"{path}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}; calibrate the monitor again"
        ) from error


def write_canary(canary: Canary, folder: Path) -> None:
    (folder / CANARY_FILE).write_text(
        canary.model_dump_json(by_alias=True, indent=2) + "\n", encoding="utf-8"
    )
