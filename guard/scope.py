"""To whom a rule applies: globs over the subject, and the stable bucket that a rollout puts it in."""

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from guard.strict import Strict
from guard.types import Subject

ENDPOINTS = ("chat", "completions", "responses", "messages", "moderations")
"""What `endpoints` may fit."""


def _glob(text: str) -> str:
    if not text:
        raise ValueError("it is empty, and fits no name")
    if re.search(r"\[(?!\]?[^\]]*\])|\[!?\]", text):
        raise ValueError(
            f"the bracket in '{text}' is not closed, or empty; write [abc] for one of three characters"
        )
    return text


Glob = Annotated[str, AfterValidator(_glob)]
"""`*` fits anything, `?` one character, `[abc]` one of three, `[!abc]` any other. Upper and lower case differ."""
Globs = tuple[Glob, ...]


def any_glob(globs: Globs, text: str) -> bool:
    return "*" in globs or any(fnmatchcase(text, glob) for glob in globs)


class Match(Strict):
    """All given parts must fit. A part that is left out fits everything."""

    models: Globs = ("*",)
    tenants: Globs = ("*",)
    not_tenants: Globs = ()
    endpoints: Globs = ("*",)
    metadata: dict[str, Globs] = Field(default_factory=dict)

    def covers(self, subject: Subject) -> bool:
        return (
            any_glob(self.models, subject.model)
            and any_glob(self.tenants, subject.tenant)
            and not any_glob(self.not_tenants, subject.tenant)
            and any_glob(self.endpoints, subject.endpoint)
            and all(
                key in subject.metadata and any_glob(globs, subject.metadata[key])
                for key, globs in self.metadata.items()
            )
        )

    @property
    def doubtful(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Globs that probably fit nothing: where they stand in the match, and why."""
        lists: dict[tuple[str, ...], Globs] = {
            ("models",): self.models,
            ("tenants",): self.tenants,
            ("not_tenants",): self.not_tenants,
        }
        lists |= {("metadata", key): globs for key, globs in self.metadata.items()}
        for where, globs in lists.items():
            for i, glob in enumerate(globs):
                if re.search(r"^\^|\$$|\.\*.|\\|\|", glob):
                    yield (*where, i), f"'{glob}' looks like a regular expression, and globs are none"
        for i, glob in enumerate(self.endpoints):
            if not any(any_glob((glob,), endpoint) for endpoint in ENDPOINTS):
                yield ("endpoints", i), f"'{glob}' fits no endpoint: {', '.join(ENDPOINTS)}"

    @property
    def nobody(self) -> str:
        """Why no subject can fit; empty if some may."""
        lists = {"models": self.models, "tenants": self.tenants, "endpoints": self.endpoints}
        lists |= {f"metadata.{key}": globs for key, globs in self.metadata.items()}
        for name, globs in lists.items():
            if not globs:
                return f"{name} is empty"
        if all(_excludes(self.not_tenants, glob) for glob in self.tenants):
            return "not_tenants takes back all of tenants"
        return ""


def _excludes(globs: Globs, tenants: str) -> bool:
    """Whether everything that one glob fits is fitted by others: certain cases only."""
    if "*" in globs or tenants in globs:
        return True
    return not set("*?[") & set(tenants) and any_glob(globs, tenants)


class Rollout(Strict):
    """Enforce a rule for a part of the traffic; the rest runs it in shadow."""

    percent: Annotated[float, Field(ge=0, le=100)]
    by: Literal["tenant", "key", "request"] = "tenant"

    def includes(self, rule: str, subject: Subject) -> bool:
        return bucket(rule, self._identity(subject)) < self.percent

    def _identity(self, subject: Subject) -> str:
        match self.by:
            case "tenant":
                return subject.tenant
            case "key":
                return subject.key_id
            case "request":
                return subject.decision_id


def bucket(rule: str, identity: str) -> float:
    """A number in [0, 100): the same on every replica, independent between rules."""
    digest = sha256(f"{rule}\0{identity}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48 * 100
