"""Tools in a chat request: what is on offer, and calls of them in the history."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from server.api.fields import Text, refused

_STRICT = ConfigDict(extra="forbid", frozen=True)
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


def _is_object(text: str) -> str:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("is not valid JSON") from error
    if not isinstance(found, dict):
        raise ValueError("is JSON, but not an object")  # noqa: TRY004  # pydantic takes ValueError
    return text


class _Function(BaseModel):
    model_config = _STRICT

    name: _Name
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = None  # nothing constrains what the model writes


class Tool(BaseModel):
    model_config = _STRICT

    type: Literal["function"]
    function: _Function

    @property
    def shown(self) -> dict[str, Any]:
        """As the chat template takes it."""
        return self.model_dump(exclude_none=True)


class _CalledFunction(BaseModel):
    model_config = _STRICT

    name: _Name
    arguments: Annotated[Text, AfterValidator(_is_object)]


class CalledTool(BaseModel):
    """A call that the model asked for, sent back as history."""

    model_config = ConfigDict(extra="ignore", frozen=True)  # a stream's `index`

    id: Text
    type: Literal["function"] = "function"
    function: _CalledFunction

    @property
    def text(self) -> str:
        return json.dumps({"name": self.function.name, "arguments": json.loads(self.function.arguments)})

    @property
    def shown(self) -> dict[str, Any]:
        """As chat templates take it: with arguments as an object."""
        function = {"name": self.function.name, "arguments": json.loads(self.function.arguments)}
        return {"id": self.id, "type": "function", "function": function}


class WithTools(BaseModel):
    """The part of a chat request that is about tools."""

    model_config = ConfigDict(frozen=True)

    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _refuse_what_needs_constraints(self) -> Self:
        """Without constrained decoding a model can be offered tools; it can't be made to call one, or only one."""
        if self.tool_choice not in (None, "none", "auto"):
            hint = "the model may be offered tools, but not made to call one: use auto or none"
            raise refused("tool_choice", hint)
        if self.offered and self.parallel_tool_calls is False:
            raise refused("parallel_tool_calls", "false can't be kept while tools are on offer")
        return self

    @property
    def offered(self) -> list[Tool]:
        """The tools that the model is told of."""
        return [] if self.tool_choice == "none" else list(self.tools or ())
