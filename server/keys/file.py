"""The key file: tenants, and keys as hashes. Whatever is wrong is told as file:line:col, and no line of it is ever shown."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import ErrorDetails

from guard.errors import PolicyError, Problem, did_you_mean
from guard.strict import Strict
from guard.yaml_source import Source, source_from_text
from server.keys.types import BlockStyle, Key, KeyScope
from server.limits.types import Limit, Unit
from server.scheduling.types import Priority

_MAX_BYTES = 1 << 20


def _instant(text: str) -> str:
    try:
        aware = datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        aware = False
    if not aware:
        raise ValueError("write a time with its zone, for example 2027-01-31T00:00:00Z")
    return text


TenantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
KeyId = Annotated[str, Field(pattern=r"^[a-z0-9]{1,32}$")]
Amount = Annotated[int, Field(ge=1, le=10**9)]
Instant = Annotated[str, AfterValidator(_instant)]


class LimitsSpec(Strict):
    """What may be used, in a bucket that fills up again: of a key by itself, of a tenant by all its keys together."""

    requests_per_minute: Amount | None = None
    tokens_per_minute: Amount | None = None  # of prompts and responses
    blocks_per_hour: Amount | None = None  # requests that the policy blocks; who has more is let in later

    def limits(self, owner: str) -> Iterator[Limit]:
        for unit, amount, period_s in (
            (Unit.REQUESTS, self.requests_per_minute, 60.0),
            (Unit.TOKENS, self.tokens_per_minute, 60.0),
            (Unit.BLOCKS, self.blocks_per_hour, 3600.0),
        ):
            if amount is not None:
                yield Limit(f"{owner}:{unit}", unit, amount, period_s)


class TenantSpec(Strict):
    """One whose requests are decided by the same rules. Policies name it in `match.tenants`."""

    description: str = ""
    weight: Annotated[float, Field(gt=0, le=100)] = (
        1.0  # its share of the places, beside those of others who wait
    )
    limits: LimitsSpec = LimitsSpec()
    block_style: Literal["openai", "refusal_200", "azure"] | None = None  # None: the server's


class KeySpec(Strict):
    id: KeyId
    tenant: TenantName
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[Literal["infer", "debug", "admin"], ...], Field(min_length=1)] = ("infer",)
    expires: Instant | None = None
    description: str = ""
    priority: Literal["high", "normal", "low"] = "normal"  # among those of its tenant who wait
    limits: LimitsSpec = LimitsSpec()

    def key(self, tenant: TenantSpec) -> Key:
        # in braces: what a Redis cluster keeps together, so that all limits of a request are on one node
        owner = f"{{{self.tenant}}}"
        return Key(
            id=self.id,
            tenant=self.tenant,
            secret_sha256=bytes.fromhex(self.sha256),
            scopes=frozenset(map(KeyScope, self.scopes)),
            expires=datetime.fromisoformat(self.expires) if self.expires else None,
            limits=(*self.limits.limits(f"{owner}:key:{self.id}"), *tenant.limits.limits(f"{owner}:tenant")),
            weight=float(tenant.weight),
            priority=Priority[self.priority.upper()],
            block_style=BlockStyle(tenant.block_style) if tenant.block_style else None,
        )


class KeyDocument(Strict):
    apiVersion: Literal["interlock/v1"]  # noqa: N815
    kind: Literal["Keys"]
    tenants: dict[TenantName, TenantSpec]
    keys: tuple[KeySpec, ...]  # some 600: a YAML file may hold 10,000 values


@dataclass(frozen=True, slots=True)
class KeyFile:
    """What a key file holds."""

    keys: Mapping[str, Key]  # by id
    tenants: frozenset[str]


def read_key_bytes(path: Path) -> bytes:
    """Raises PolicyError."""
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        told = f"cannot read the key file: {error.strerror}"
        raise PolicyError([Problem(str(path), 1, 1, "unreadable", told)]) from None
    if len(data) > _MAX_BYTES:
        raise PolicyError([Problem(str(path), 1, 1, "too-large", "the key file is larger than 1 MiB")])
    return data


def parse_keys(data: bytes, path: Path) -> KeyFile:
    """Raises PolicyError with every problem."""
    document, source = _document(data, path)
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    for index, key in enumerate(document.keys):
        if key.tenant not in document.tenants:
            told = f"keys.{index}.tenant: no such tenant"
            hint = did_you_mean(key.tenant, document.tenants) or "list it under tenants"
            problems.append(source.problem(("keys", index, "tenant"), "unknown-tenant", told, hint))
        if key.id in seen:
            told = f"keys.{index}.id: the id of keys.{seen[key.id]} again"
            problems.append(source.problem(("keys", index, "id"), "duplicate-id", told))
        seen.setdefault(key.id, index)
    if problems:
        raise PolicyError(map(_bare, problems))
    return KeyFile(
        {key.id: key.key(document.tenants[key.tenant]) for key in document.keys}, frozenset(document.tenants)
    )


def _document(data: bytes, path: Path) -> tuple[KeyDocument, Source]:
    try:
        source = source_from_text(data.decode(), str(path))
        return KeyDocument.model_validate(source.root.plain()), source
    except UnicodeDecodeError:
        raise PolicyError([Problem(str(path), 1, 1, "encoding", "the key file is not UTF-8")]) from None
    except PolicyError as error:
        raise PolicyError(map(_bare, error.problems)) from None
    except ValidationError as error:
        found = [_problem(source, e) for e in error.errors(include_url=False, include_input=False)]
        raise PolicyError(sorted(found, key=lambda p: (p.line, p.col))) from None


def _problem(source: Source, error: ErrorDetails) -> Problem:
    """pydantic's complaint at its place."""
    path = tuple(part for part in error["loc"] if part != "[key]")
    where = ".".join(map(str, path)) or "the file"
    match error["type"]:
        case "extra_forbidden":
            hint = did_you_mean(str(path[-1]), _owner(path).model_fields)
            return _bare(source.problem(path, "unknown-key", f"unknown key {where}", hint, at_key=True))
        case "missing":
            return _bare(source.problem(path, "missing-key", f"missing key {where}"))
        case "string_pattern_mismatch" if path[-1] == "sha256":
            told = f"{where}: 64 hexadecimal digits, the SHA-256 of the key's secret part"
            return _bare(source.problem(path, "value", told, "make keys with: interlock keys create"))
        case _:
            context: dict[str, Any] = error.get("ctx", {})
            told = f"{where}: {context['error'] if 'error' in context else error['msg']}"
            return _bare(source.problem(path, "value", told))


def _owner(path: tuple[int | str, ...]) -> type[Strict]:
    """Whose key stands at a path."""
    match path:
        case (_, _, "limits", _):
            return LimitsSpec
        case ("tenants", _, _):
            return TenantSpec
        case ("keys", _, _):
            return KeySpec
        case _:
            return KeyDocument


def _bare(problem: Problem) -> Problem:
    """Without the line: somebody may have written a secret into the file."""
    return replace(problem, source_line="")
