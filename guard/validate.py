"""A source against the schema: pydantic's complaints become problems with a place and a remedy."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from guard.actions import ACTIONS
from guard.errors import PolicyError, Problem, did_you_mean
from guard.schema import DOCUMENTS, TIME_EXAMPLE, Document, OneAction
from guard.yaml_source import Path_, Source

_CODES = {"missing": "missing-key", "extra_forbidden": "unknown-key", "literal_error": "unknown-value"}
_SHOWN_CHARACTERS = 80


_REFUSED_KEYS = {
    "<<": "YAML 1.2 has no merge keys; an anchor stands for a whole value",
    "layers": "a vector is applied at the hook points that it was made for; to use fewer, make one for those",
}
"""Keys that people may look for, and why there are none."""


def read_document(source: Source) -> Document:
    """Raises PolicyError with every deviation from the schema."""
    data = source.root.plain()
    if not isinstance(data, dict):
        raise PolicyError(
            [source.problem((), "type", "a policy file is a mapping", "start with apiVersion: interlock/v1")]
        )
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in DOCUMENTS:
        told = f"kind: unknown value {_given(kind)}" if "kind" in data else "missing key 'kind' in the file"
        code = "unknown-value" if "kind" in data else "missing-key"
        raise PolicyError([source.problem(("kind",), code, told, did_you_mean(str(kind), DOCUMENTS))])
    try:
        return DOCUMENTS[kind].model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=True)
        problems = {
            problem: None
            for detail in details
            if not (detail["type"] == "too_short" and detail["input"])  # its items are what is wrong
            for problem in [_problem(source, DOCUMENTS[kind], detail)]
        }
        raise PolicyError(sorted(problems, key=lambda p: (p.line, p.col))) from None


def _problem(source: Source, document: type[BaseModel], error: ErrorDetails) -> Problem:
    path, kind = error["loc"], error["type"]
    where = ".".join(map(str, path))
    code = _CODES.get(kind, "value")
    match kind:
        case "extra_forbidden":
            return _unknown_key(source, document, path)
        case "missing":
            above = ".".join(map(str, path[:-1])) or "the file"
            choices = _literals(_field_at(document, path))
            hint = f"write {path[-1]}: {choices[0]}" if len(choices) == 1 else did_you_mean("", choices)
            return source.problem(path, code, f"missing key '{path[-1]}' in {above}", hint)
        case "model_type" | "model_attributes_type" if path and path[-1] == "then":
            value = error["input"]
            word = value if isinstance(value, str) and value in ACTIONS else "block"
            told = f"{where}: an action with its settings is needed, not {_given(value)}"
            return source.problem(path, "type", told, f"write {{{word}: {{}}}}")
        case _:
            told, hint = _told(source, document, error)
            return source.problem(path, "type" if kind.endswith("_type") else code, f"{where}: {told}", hint)


def _unknown_key(source: Source, document: type[BaseModel], path: Path_) -> Problem:
    *parent, key = path
    below = f"in {'.'.join(map(str, parent))}" if parent else "in the file"
    owner = _model_at(document, tuple(parent))
    if owner is not None and issubclass(owner, OneAction):
        code, message = "unknown-action", f"unknown action '{_short(str(key))}'"
    else:
        code, message = "unknown-key", f"unknown key '{_short(str(key))}' {below}"
    hint = did_you_mean(str(key), owner.model_fields) if owner else ""
    if refusal := _REFUSED_KEYS.get(str(key)):
        hint = refusal
    elif owner is not None and not owner.model_fields:
        hint = "it has no settings: write {}"
    return source.problem(path, code, message, hint, at_key=True)


@dataclass(frozen=True, slots=True)
class _Fault:
    """A value that does not fit, and the limits that pydantic names."""

    source: Source
    path: Path_
    value: Any
    limits: dict[str, Any]
    field: FieldInfo | None  # None inside a plain mapping or list
    model: type[BaseModel] | None  # whose keys should stand there

    @property
    def given(self) -> str:
        return _given(self.value)


Told = tuple[str, str]
"""What is wrong, and what to write instead."""


def _told(source: Source, document: type[BaseModel], error: ErrorDetails) -> Told:
    path, limits = error["loc"], error.get("ctx", {})
    field, model = _field_at(document, path), _model_at(document, path)
    tell = _TELL.get(error["type"])
    if tell is None:
        return error["msg"].replace("Input should", "it should", 1), ""
    return tell(_Fault(source, path, error["input"], limits, field, model))


def _literal(fault: _Fault) -> Told:
    choices = _literals(fault.field) or _choices(fault.limits.get("expected", ""))
    return f"unknown value {fault.given}", did_you_mean(str(fault.value), choices)


def _no_text(fault: _Fault) -> Told:
    hint = ""
    if isinstance(fault.value, bool | int | float):
        hint = f'put it in quotes: "{_short(fault.source.written(fault.path))}"'
    elif fault.value:
        hint = "put text that begins with { or [ in quotes"
    return f"text is needed, not {fault.given}", hint


def _no_id(fault: _Fault) -> Told:
    letters = "lower-case letters, digits and hyphens"
    if "A-Z" in fault.limits["pattern"]:
        letters = "letters, digits, '.', '_' and hyphens"
    return f"{fault.given} is not a valid id", f"use {letters}, at most 63, starting with a letter or digit"


def _too_short(fault: _Fault) -> Told:
    least = fault.limits["min_length"]
    return ("it is empty" if least == 1 else f"at least {least} characters are needed"), ""


def _too_long(fault: _Fault) -> Told:
    most = fault.limits["max_length"]
    return f"it has {len(fault.value):,} characters, and at most {most:,} are allowed", ""


def _no_list(fault: _Fault) -> Told:
    hint = f"write [{_short(str(fault.value))}]" if isinstance(fault.value, str | int | float) else ""
    return f"a list is needed, not {fault.given}", hint


def _no_model(fault: _Fault) -> Told:
    keys = ", ".join(fault.model.model_fields) if fault.model else ""
    return f"a mapping is needed, not {fault.given}", f"its keys: {keys}" if keys else "write {}"


def _no_whole_number(fault: _Fault) -> Told:
    return f"a whole number is needed, not {fault.given}", _allowed(fault.field)


def _no_number(fault: _Fault) -> Told:
    return f"a finite number is needed, not {fault.given}", _allowed(fault.field)


def _out_of_range(fault: _Fault) -> Told:
    return f"{fault.given} is out of range", _allowed(fault.field)


def _no_time(fault: _Fault) -> Told:
    reason = f": {fault.limits['error']}" if "error" in fault.limits else ""
    return f"{fault.given} is no time{reason}", f"write for example {TIME_EXAMPLE}"


_TELL: dict[str, Callable[[_Fault], Told]] = {
    "literal_error": _literal,
    "string_type": _no_text,
    "string_pattern_mismatch": _no_id,
    "string_too_short": _too_short,
    "string_too_long": _too_long,
    "too_short": lambda _: ("the list is empty", "name at least one"),
    "tuple_type": _no_list,
    "dict_type": lambda fault: (f"a mapping is needed, not {fault.given}", "write {key: value}"),
    "model_type": _no_model,
    "model_attributes_type": _no_model,
    "bool_type": lambda fault: (f"true or false is needed, not {fault.given}", ""),
    "int_type": _no_whole_number,
    "int_from_float": _no_whole_number,
    "float_type": _no_number,
    "finite_number": _no_number,
    "greater_than": _out_of_range,
    "greater_than_equal": _out_of_range,
    "less_than": _out_of_range,
    "less_than_equal": _out_of_range,
    "timezone_aware": lambda fault: (
        f"{fault.given} has no time with its zone",
        f"write for example {TIME_EXAMPLE}",
    ),
    "datetime_from_date_parsing": _no_time,
    "datetime_parsing": _no_time,
    "datetime_object_invalid": _no_time,
    "value_error": lambda fault: (str(fault.limits["error"]), ""),
}
"""By pydantic's types of errors (docs.pydantic.dev/latest/errors/validation_errors)."""


# --- values, as the file has them


def _given(value: Any) -> str:
    """What stands there, short enough for a message."""
    match value:
        case None:
            return "an empty value"
        case bool():
            return str(value).lower()
        case str():
            return f"'{_short(value)}'"
        case int() | float():
            return _short(str(value))
        case dict():
            return "a mapping"
        case _:
            return "a list"


def _short(text: str) -> str:
    line = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}…"


# --- what the schema allows


def _allowed(field: FieldInfo | None) -> str:
    """The range of a number: `allowed: from 0 to 256`."""
    limits = {} if field is None else dict(_limits((field.annotation, *field.metadata)))
    words = {
        "ge": "from",
        "gt": "above",
        "le": "to" if "ge" in limits else "up to",
        "lt": "to below" if "ge" in limits else "below",
    }
    told = [f"{word} {limits[key]}" for key, word in words.items() if key in limits]
    return f"allowed: {' '.join(told)}{' on' if len(told) == 1 and 'ge' in limits else ''}" if told else ""


def _limits(parts: tuple[Any, ...]) -> Iterator[tuple[str, float]]:
    """The bounds that stand in an annotation: annotated_types' Ge, Gt, Le and Lt, however deep."""
    for part in parts:
        if isinstance(part, FieldInfo):
            yield from _limits((part.annotation, *part.metadata))
        for key in ("ge", "gt", "le", "lt"):
            if (limit := getattr(part, key, None)) is not None:
                yield key, limit
        yield from _limits((*get_args(part), *getattr(part, "__metadata__", ())))


def _literals(field: FieldInfo | None) -> list[str]:
    """The values of a field that has a few."""
    parts = [] if field is None else [field.annotation, *get_args(field.annotation)]
    return [str(value) for part in parts if get_origin(part) is Literal for value in get_args(part)]


def _choices(expected: str) -> list[str]:
    """`'a', 'b' or 'c'` -> a, b, c."""
    return [part.strip().strip("'") for part in expected.replace(" or ", ",").split(",") if part.strip()]


def _field_at(document: type[BaseModel], path: Path_) -> FieldInfo | None:
    """The field that a path of the file leads to; None inside a plain mapping or list."""
    owner = _model_at(document, path[:-1]) if path else None
    return owner.model_fields.get(str(path[-1])) if owner else None


def _model_at(document: type[BaseModel], path: Path_) -> type[BaseModel] | None:
    """The model whose keys stand at a path of the file."""
    model: type[BaseModel] | None = document
    for step in path:
        if isinstance(step, int):
            continue  # an item of a list has the list's model
        if model is None or step not in model.model_fields:
            return None
        model = next(models_in(model.model_fields[step].annotation), None)
    return model


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)
