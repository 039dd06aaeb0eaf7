"""The form of a policy file: what keys there are and what values they take. What they mean is decided elsewhere."""

import re
from datetime import datetime
from math import isclose
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from guard import durations
from guard.actions import ACTIONS
from guard.actions.base import Action
from guard.scope import Globs, Match, Rollout
from guard.series import parse_series
from guard.strict import Strict
from guard.types import JsonObject

_ID = r"^[a-z0-9][a-z0-9-]{0,62}$"

LogContent = Literal["none", "hash", "excerpt", "full"]
LOG_CONTENTS: tuple[LogContent, ...] = get_args(LogContent)  # from the least to the most
ModeName = Literal["enforce", "shadow", "off"]
OnErrorName = Literal["closed", "open"]
Id = Annotated[str, Field(pattern=_ID)]
_SHORTEST_REASON = 8


def _reason(text: str) -> str:
    if len(text.strip()) < _SHORTEST_REASON:
        raise ValueError(f"write a reason, in at least {_SHORTEST_REASON} characters")
    return text


Reason = Annotated[str, Field(min_length=_SHORTEST_REASON), AfterValidator(_reason)]


def _named(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty")
    return text


Name = Annotated[str, Field(min_length=1), AfterValidator(_named)]


def _pin(text: str) -> str:
    if not re.fullmatch(r"[^@\s]{1,64}@[^@\s]{1,64}", text):
        raise ValueError("write a monitor with its version, for example harm@3")
    return text


Pin = Annotated[str, AfterValidator(_pin)]


TIME_EXAMPLE = "2026-12-01T00:00:00Z"


def _time_text(value: Any) -> Any:
    """A date and what follows; pydantic alone would also read a number, as seconds since 1970."""
    if not isinstance(value, datetime) and not (isinstance(value, str) and re.match(r"\d{4}-\d", value)):
        raise ValueError(f"write a time with its zone, for example {TIME_EXAMPLE}")
    return value


Time = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_time_text)]


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _series(text: str) -> str:
    parse_series(text)
    return text


ANY_RATE = "any"


def _by_rate(value: Any) -> Any:
    """A number is for every budget; a mapping has one for each rate."""
    by_rate = value if isinstance(value, dict) else {ANY_RATE: value}
    for rate, threshold in by_rate.items():
        if type(threshold) not in {int, float}:
            raise ValueError("write a threshold, as 0.9, or one for each rate, as {0.01: 0.7, 0.001: 0.9}")
        if rate != ANY_RATE and not re.fullmatch(r"0?\.\d+|\d(\.\d+)?[eE]-\d+", rate):
            raise ValueError(f"'{rate}' is no false-positive rate; write for example 0.001")
    return by_rate


ThresholdsByRate = Annotated[
    dict[str, float], BeforeValidator(_by_rate, json_schema_input_type=float | dict[str, float])
]
SeriesText = Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_series)]


def _budget(duration: str) -> str:
    if durations.seconds(duration) <= 0:
        raise ValueError("no decision is made in no time; the default is 1s")
    return duration


class Metadata(Strict):
    name: Id
    version: Annotated[str, Field(min_length=1, max_length=64)]
    owner: str = ""
    description: str = ""
    maturity: Literal["sandbox", "incubating", "stable"] = "stable"


class PolicyMetadata(Metadata):
    precedence: int = 0
    """Of two rules whose actions are equally severe, that of the higher precedence wins; then the order of the files."""


class Log(Strict):
    content: LogContent = "none"
    sample: Annotated[float, Field(ge=0, le=1)] = 1.0


class Defaults(Strict):
    mode: ModeName = "enforce"
    on_error: OnErrorName = "closed"
    budget: Annotated[str, AfterValidator(_budget)] = "1s"
    holdback: Annotated[int, Field(ge=0, le=256)] = 0
    log: Log = Log()


class OneAction(Strict):
    """`then:` has exactly one key, the name of an action. `Then` below has one field for each row of ACTIONS."""

    @property
    def action(self) -> Action:
        (name,) = self.model_fields_set
        action: Action = getattr(self, name)
        return action

    @model_validator(mode="before")
    @classmethod
    def _exactly_one(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) != 1:
            raise ValueError(
                f"exactly one action is needed, not {len(data)}; write for example {{log: {{}}}}"
            )
        return data


_ACTION_FIELDS: Any = {kind: (action, Field(default=None)) for kind, action in ACTIONS.items()}
Then: type[OneAction] = create_model("Then", __base__=OneAction, **_ACTION_FIELDS)


class Override(Strict):
    """Why a rule may do what it otherwise may not."""

    reason: Reason


class RuleSpec(Strict):
    id: Id
    severity: Literal["low", "medium", "high", "critical"] = "medium"
    description: str = ""
    tags: tuple[str, ...] = ()
    match: Match = Match()
    when: Annotated[str, Field(max_length=2_000)]
    then: Then
    mode: ModeName | None = None
    on_error: OnErrorName | None = None
    rollout: Rollout | None = None
    override: Override | None = None
    pins: tuple[Pin, ...] = ()
    """`harm@3`: the rule is for that version of the monitor; with another one installed the policy is refused."""

    @property
    def action(self) -> Action:
        then: OneAction = self.then
        return then.action


class Given(Strict):
    tenant: str = "default"
    model: str = ""
    endpoint: str = "chat"
    key_id: str = ""
    metadata: dict[str, str] = Field(default_factory=dict)
    turn: Annotated[int, Field(ge=0)] = 1
    thresholds: dict[str, ThresholdsByRate] = Field(default_factory=dict)
    """By monitor: what `exceeds` compares with, calibrated or not."""
    now: Time | None = None
    rollout_bucket: Annotated[float, Field(ge=0, lt=100)] | None = None
    second_opinion: dict[str, Literal["allow", "block", "timeout"]] = Field(default_factory=dict)
    """By target: what it answers, however often it is asked."""
    prompt: dict[str, SeriesText] = Field(default_factory=dict)
    response: dict[str, SeriesText] = Field(default_factory=dict)

    @field_validator("prompt", "response")
    @classmethod
    def _same_length(cls, series: dict[str, str]) -> dict[str, str]:
        lengths = {name: len(parse_series(text)) for name, text in series.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} has {n}" for name, n in lengths.items())
            raise ValueError(f"the series differ in length: {told} tokens")
        return series

    def threshold(self, monitor: str, fpr: float) -> float | None:
        """What the test gives for a budget."""
        by_rate = self.thresholds.get(monitor, {})
        found = (x for rate, x in by_rate.items() if rate != ANY_RATE and isclose(float(rate), fpr))
        return next(found, by_rate.get(ANY_RATE))


class Expect(Strict):
    """What a test demands; parts that are left out are not looked at."""

    action: Literal["allow", "log", "annotate", "steer", "escalate", "replace", "block", "unavailable"]
    rules: tuple[str, ...] | None = None
    shadow: tuple[str, ...] | None = None
    phase: Literal["prompt", "response"] | None = None
    token: Annotated[int, Field(ge=0)] | None = None


class CaseSpec(Strict):
    name: Annotated[str, Field(min_length=1)]
    given: Given = Given()
    expect: Expect
    known_miss: bool = False


class ExceptionSpec(Strict):
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    rules: Annotated[Globs, Field(min_length=1)]
    match: Match = Match()
    mode: Literal["shadow", "off"]
    reason: Reason
    approved_by: Annotated[tuple[Name, ...], Field(min_length=1)]
    starts: Time | None = None
    expires: Time

    @field_validator("expires")
    @classmethod
    def _starts_first(cls, expires: datetime, info: ValidationInfo) -> datetime:
        starts = info.data.get("starts")
        if starts and starts >= expires:
            raise ValueError("expires must be later than starts")
        return expires


class PolicyDocument(Strict):
    KIND: ClassVar[str] = "Policy"
    apiVersion: Literal["interlock/v1"]  # noqa: N815  (the file's spelling)
    kind: Literal["Policy"]
    metadata: PolicyMetadata
    defaults: Defaults = Defaults()
    rules: tuple[RuleSpec, ...] = ()
    tests: tuple[CaseSpec, ...] = ()


class ExceptionsDocument(Strict):
    KIND: ClassVar[str] = "Exceptions"
    apiVersion: Literal["interlock/v1"]  # noqa: N815
    kind: Literal["Exceptions"]
    metadata: Metadata
    exceptions: tuple[ExceptionSpec, ...] = ()
    tests: tuple[CaseSpec, ...] = ()


Document = PolicyDocument | ExceptionsDocument
DOCUMENTS: dict[str, type[PolicyDocument] | type[ExceptionsDocument]] = {
    document.KIND: document for document in (PolicyDocument, ExceptionsDocument)
}


def json_schema() -> JsonObject:
    """JSON Schema of a policy file, for editors and `check-jsonschema`."""
    adapter: TypeAdapter[Any] = TypeAdapter(Annotated[Document, Field(discriminator="kind")])
    return adapter.json_schema()
