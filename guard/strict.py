"""The base of everything read from a file: no unknown keys, no silent conversions, no changes afterwards."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
