"""Tools in a chat request: what is on offer, and calls of them in the history."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from server.api.fields import REFUSED, Text
from server.grammars.source import Schema

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


def _describes_object(parameters: dict[str, Any]) -> dict[str, Any]:
    if parameters.get("type", "object") != "object":
        raise ValueError("must describe an object")
    return parameters


class _Function(BaseModel):
    model_config = _STRICT

    name: _Name
    description: Text | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(_describes_object)] | None = None
    strict: bool | None = None

    @property
    def arguments(self) -> Schema:
        """What they must be; without `parameters`, none."""
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {"type": "object", **self.parameters}


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


class _FunctionName(BaseModel):
    model_config = _STRICT

    name: _Name


class ToolChoice(BaseModel):
    """The one tool that must be called."""

    model_config = _STRICT

    type: Literal["function"]
    function: _FunctionName


class WithTools(BaseModel):
    """The part of a chat request that is about tools."""

    model_config = ConfigDict(frozen=True)

    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _must_call_what_is_offered(self) -> Self:
        if self.must_call and not self.callable:
            told = "{field} asks for a call of a tool that is not among tools"
            raise PydanticCustomError(REFUSED, told, {"field": "tool_choice"})
        return self

    @property
    def offered(self) -> list[Tool]:
        """The tools that the model is told of."""
        return [] if self.tool_choice == "none" else list(self.tools or ())

    @property
    def callable(self) -> dict[str, Schema]:
        """The tools that it may call, by name, and what their arguments must be."""
        chosen = self.tool_choice.function.name if isinstance(self.tool_choice, ToolChoice) else None
        functions = [tool.function for tool in self.offered]
        return {f.name: f.arguments for f in functions if chosen in (None, f.name)}

    @property
    def must_call(self) -> bool:
        return self.tool_choice == "required" or isinstance(self.tool_choice, ToolChoice)

    @property
    def at_most_one_call(self) -> bool:
        return self.parallel_tool_calls is False or isinstance(self.tool_choice, ToolChoice)

    @property
    def constrains_calls(self) -> bool:
        """Whether the model can't be left to itself in how it calls."""
        is_strict = any(tool.function.strict for tool in self.offered)
        return bool(self.offered) and (self.must_call or self.at_most_one_call or is_strict)
