"""A source against the schema: pydantic's complaints become problems with a place and a remedy."""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from guard.actions import ACTIONS
from guard.errors import PolicyError, Problem, did_you_mean
from guard.schema import DOCUMENTS, Document, OneAction
from guard.yaml_source import Source

_CODES = {"missing": "missing-key", "extra_forbidden": "unknown-key", "literal_error": "unknown-value"}


def read_document(source: Source) -> Document:
    """Raises PolicyError with every deviation from the schema."""
    data = source.root.plain()
    if not isinstance(data, dict):
        raise PolicyError(
            [source.problem((), "type", "a policy file is a mapping", "start with apiVersion: interlock/v1")]
        )
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in DOCUMENTS:
        told = f"unknown kind '{kind}'" if "kind" in data else "missing key 'kind'"
        code = "unknown-value" if "kind" in data else "missing-key"
        raise PolicyError([source.problem(("kind",), code, told, did_you_mean(str(kind), DOCUMENTS))])
    try:
        return DOCUMENTS[kind].model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=True)
        problems = {
            problem: None for detail in details for problem in [_problem(source, DOCUMENTS[kind], detail)]
        }
        raise PolicyError(sorted(problems, key=lambda p: (p.line, p.col))) from None


def _problem(source: Source, document: type[BaseModel], error: ErrorDetails) -> Problem:
    path, kind, value = error["loc"], error["type"], error["input"]
    code = _CODES.get(kind, "value")
    where = ".".join(map(str, path))
    match kind:
        case "extra_forbidden":
            *parent, key = path
            below = f"in {'.'.join(map(str, parent))}" if parent else "in the file"
            owner = _model_at(document, tuple(parent))
            action = bool(owner and issubclass(owner, OneAction))
            hint = did_you_mean(str(key), owner.model_fields) if owner else ""
            message = f"unknown action '{key}'" if action else f"unknown key '{key}' {below}"
            return source.problem(path, "unknown-action" if action else code, message, hint, at_key=True)
        case "missing":
            above = ".".join(map(str, path[:-1])) or "the file"
            return source.problem(path, code, f"missing key '{path[-1]}' in {above}")
        case "literal_error":
            known = _choices(error.get("ctx", {}).get("expected", ""))
            return source.problem(
                path, code, f"{where}: unknown value '{value}'", did_you_mean(str(value), known)
            )
        case "string_type":
            return source.problem(path, "type", f"{where}: text is needed", f'put it in quotes: "{value}"')
        case "model_type" | "model_attributes_type" if path and path[-1] == "then":
            word = value if isinstance(value, str) and value in ACTIONS else "block"
            return source.problem(
                path, "type", f"{where}: an action with its settings is needed", f"write {{{word}: {{}}}}"
            )
        case "string_pattern_mismatch":
            hint = "use lower-case letters, digits and hyphens, at most 63, starting with a letter or digit"
            return source.problem(path, code, f"{where}: '{str(value)[:80]}' is not a valid id", hint)
        case "value_error":
            return source.problem(
                path, code, f"{where}: {error['ctx']['error']}" if "ctx" in error else error["msg"]
            )
        case _:
            return source.problem(path, code, f"{where}: {_reworded(error['msg'])}")


def _reworded(message: str) -> str:
    """pydantic's message in the words of YAML."""
    text = message.replace("valid dictionary", "mapping").replace("valid tuple", "list")
    return text.replace("Input should", "it should", 1)


def _choices(expected: str) -> list[str]:
    """`'a', 'b' or 'c'` -> a, b, c."""
    return [part.strip().strip("'") for part in expected.replace(" or ", ",").split(",") if part.strip()]


def _model_at(document: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel] | None:
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
