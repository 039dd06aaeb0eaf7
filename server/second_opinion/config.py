"""The file that names the targets of second opinions. It is the server's, never the policy's, and holds no key."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from guard.errors import PolicyError, Problem, did_you_mean
from guard.schema import Id
from guard.yaml_source import Source, read_source
from server.second_opinion.moderation import Moderation
from server.second_opinion.openai_judge import OpenAIJudge
from server.second_opinion.settings import TargetSettings
from server.second_opinion.webhook import Webhook

TARGETS: dict[str, type[TargetSettings]] = {
    "openai_judge": OpenAIJudge,
    "moderation": Moderation,
    "webhook": Webhook,
}

_KEY = "second_opinions"
_FILE: TypeAdapter[dict[str, OpenAIJudge | Moderation | Webhook]] = TypeAdapter(
    dict[Id, Annotated[OpenAIJudge | Moderation | Webhook, Field(discriminator="kind")]]
)


@dataclass(frozen=True, slots=True)
class Target:
    """One that can be asked, with its key."""

    name: str
    settings: TargetSettings
    secret: SecretStr | None = None


def read_targets(path: Path, environ: Mapping[str, str]) -> tuple[Target, ...]:
    """Raises PolicyError with every problem as file:line:col, or OSError. No message shows a line or a key."""
    source = read_source(path)
    root = source.root.plain()
    if not isinstance(root, dict) or set(root) != {_KEY}:
        hint = f"write {_KEY}: {{judge: {{kind: openai_judge, url: ..., model: ..., instructions: ...}}}}"
        raise PolicyError([source.problem((), "type", f"this file has one key, {_KEY}", hint)])
    try:
        read = _FILE.validate_python(root[_KEY])
    except ValidationError as error:
        problems = [_problem(source, e) for e in error.errors(include_url=False, include_input=False)]
        raise PolicyError(sorted(problems, key=lambda p: (p.line, p.col))) from None
    targets = [Target(name, settings, _secret(settings.key_env, environ)) for name, settings in read.items()]
    if problems := [problem for target in targets if (problem := _doubt(source, target))]:
        raise PolicyError(problems)
    return tuple(targets)


def _secret(name: str | None, environ: Mapping[str, str]) -> SecretStr | None:
    return SecretStr(environ[name].strip()) if name is not None and environ.get(name, "").strip() else None


def _doubt(source: Source, target: Target) -> Problem | None:
    """What is wrong with a target's key."""
    name = target.settings.key_env
    if name is None:
        return None
    field = next(f for f in ("api_key_env", "secret_env") if f in type(target.settings).model_fields)
    where = (_KEY, target.name, field)
    if target.secret is None:
        message = f"the environment variable {name} is not set"
        return _bare(source.problem(where, "no-key", message, "set it before the server starts"))
    try:
        target.settings.check_secret(target.secret.get_secret_value())
    except ValueError as error:
        return _bare(source.problem(where, "bad-key", f"the environment variable {name} {error}"))
    return None


def _problem(source: Source, error: ErrorDetails) -> Problem:
    """pydantic's complaint at its place. The path names the kind, which is no key of the file."""
    loc = error["loc"]
    path: tuple[str | int, ...] = (
        (_KEY, *loc[:1], *loc[2:]) if len(loc) > 1 and loc[1] in TARGETS else (_KEY, *loc)
    )
    where = ".".join(map(str, path))
    match error["type"]:
        case "extra_forbidden":
            known = TARGETS[str(loc[1])].model_fields if len(path) == 3 else {}  # noqa: PLR2004  # a key of a target
            hint = did_you_mean(str(path[-1]), known)
            return _bare(source.problem(path, "unknown-key", f"unknown key {where}", hint, at_key=True))
        case "missing":
            return _bare(source.problem(path, "missing-key", f"missing key {where}"))
        case "union_tag_invalid" | "union_tag_not_found":
            told = f"{where}: kind is one of {', '.join(TARGETS)}"
            return _bare(source.problem((*path, "kind"), "unknown-value", told))
        case _:
            return _bare(source.problem(path, "value", f"{where}: {_reason(error)}"))


def _reason(error: ErrorDetails) -> str:
    context: dict[str, Any] = error.get("ctx", {})
    return str(context["error"]) if "error" in context else error["msg"]


def _bare(problem: Problem) -> Problem:
    """Without the line: a key that somebody wrote into the file must not be shown."""
    return replace(problem, source_line="")
