"""`response_format`, and the `text.format` that /v1/responses has for it: what JSON a reply must be."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from server.api.fields import Text
from server.grammars.source import Schema

_STRICT = ConfigDict(extra="forbid", frozen=True)
_ANY_OBJECT: Schema = {"type": "object"}


class _TextFormat(BaseModel):
    model_config = _STRICT

    type: Literal["text"]

    @property
    def answer(self) -> None:
        return None


class _JsonObject(BaseModel):
    model_config = _STRICT

    type: Literal["json_object"]

    @property
    def answer(self) -> Schema:
        return _ANY_OBJECT


class _Named(BaseModel):
    """A schema is always kept to, so `strict` says nothing new. Without one any JSON will do."""

    model_config = _STRICT

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: Text | None = None
    strict: bool | None = None
    told: dict[str, Any] | None = Field(default=None, alias="schema")

    @property
    def answer(self) -> Schema:
        return self.told or {}


class _JsonSchema(BaseModel):
    model_config = _STRICT

    type: Literal["json_schema"]
    json_schema: _Named

    @property
    def answer(self) -> Schema:
        return self.json_schema.answer


class _FlatJsonSchema(_Named):
    type: Literal["json_schema"]


ResponseFormat = Annotated[_TextFormat | _JsonObject | _JsonSchema, Field(discriminator="type")]
TextFormat = Annotated[_TextFormat | _JsonObject | _FlatJsonSchema, Field(discriminator="type")]
