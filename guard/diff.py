"""What differs between two policies in meaning: rules, exceptions, defaults, tests. Layout and comments do not count."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from guard.policy import Policy
from guard.rules import Rule
from guard.schema import CaseSpec, ExceptionSpec, PolicyDocument, RuleSpec
from guard.strict import Strict

Kind = Literal["added", "removed", "changed"]
Thing = Literal["policy", "defaults", "rule", "exception", "test"]

_TOKEN = re.compile(r"\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\w+|[<>=!]=|\S")
_NUMBER = re.compile(r"\.?\d")


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `field` is "" where the thing itself came or went; `before` and `after` are as people write them."""

    kind: Kind
    thing: Thing
    name: str
    field: str = ""
    before: str = ""
    after: str = ""

    def __str__(self) -> str:
        what = f"{self.thing} {self.name}".rstrip()
        match self.kind:
            case "added":
                return f"{what}: added: {self.after}"
            case "removed":
                return f"{what}: removed: {self.before}"
            case "changed":
                return f"{what}: {self.field} {self.before} -> {self.after}"


def diff(before: Policy, after: Policy) -> tuple[Change, ...]:
    """Everything that differs, in the order of the files; empty if the policies mean the same.

    Rules are compared as they take effect: a changed default shows at the defaults and at each rule that it changes.
    """
    return (
        *_heads(before, after),
        *_things("rule", _rules(before), _rules(after)),
        *_order(before, after),
        *_things("exception", _exceptions(before), _exceptions(after)),
        *_things("test", _tests(before), _tests(after)),
    )


# --- what is compared: by name, the settings as text


@dataclass(frozen=True, slots=True)
class _Side:
    summary: str
    settings: Mapping[str, str]
    rule: Rule | None = None


def _rules(policy: Policy) -> dict[str, _Side]:
    specs = {spec.id: spec for document in _policy_documents(policy) for spec in document.rules}
    return {rule.id: _rule_side(rule, specs[rule.id]) for rule in policy.rules}


def _rule_side(rule: Rule, spec: RuleSpec) -> _Side:
    settings = _flat(spec, leave_out={"id", "when", "then"})
    settings |= {"mode": rule.mode.value, "on_error": rule.on_error.value, "holdback": str(rule.holdback)}
    settings["action"] = rule.action.kind
    settings |= {f"{rule.action.kind}.{key}": value for key, value in _flat(rule.action).items()}
    return _Side(f"{rule.action.kind} ({rule.mode}) when {_one_line(rule.when)}", settings, rule)


def _exceptions(policy: Policy) -> dict[str, _Side]:
    specs: list[ExceptionSpec] = [
        spec
        for document in policy.documents
        if not isinstance(document, PolicyDocument)
        for spec in document.exceptions
    ]
    return {
        spec.id: _Side(
            f"{spec.mode} for {', '.join(spec.rules)} until {spec.expires.isoformat()}", _flat(spec)
        )
        for spec in specs
    }


def _tests(policy: Policy) -> dict[str, _Side]:
    sides: dict[str, _Side] = {}
    for test in policy.tests:
        name = repr(test.name)
        while name in sides:  # names of tests need not be unique
            name += "'"
        sides[name] = _test_side(test)
    return sides


def _test_side(test: CaseSpec) -> _Side:
    return _Side(f"expects {test.expect.action}", _flat(test, leave_out={"name"}))


def _heads(before: Policy, after: Policy) -> Iterator[Change]:
    olds, news = _policy_documents(before), _policy_documents(after)
    if len(olds) == len(news) == 1:
        pairs = {"": (olds[0], news[0])}
    else:
        by_name = {document.metadata.name: document for document in news}
        pairs = {
            old.metadata.name: (old, by_name[old.metadata.name])
            for old in olds
            if old.metadata.name in by_name
        }
        for name in sorted({d.metadata.name for d in olds} ^ {d.metadata.name for d in news}):
            gone = name not in by_name
            yield Change("removed" if gone else "added", "policy", name, before="its file", after="its file")
    for name, (old, new) in pairs.items():
        yield from _fields("policy", name, _flat(old.metadata), _flat(new.metadata))
        yield from _fields("defaults", name, _flat(old.defaults), _flat(new.defaults))


def _policy_documents(policy: Policy) -> list[PolicyDocument]:
    return [document for document in policy.documents if isinstance(document, PolicyDocument)]


# --- comparing


def _things(thing: Thing, before: Mapping[str, _Side], after: Mapping[str, _Side]) -> Iterator[Change]:
    for name, side in before.items():
        if name not in after:
            yield Change("removed", thing, name, before=side.summary)
            continue
        other = after[name]
        if side.rule and other.rule and side.rule.condition != other.rule.condition:
            yield from _conditions(name, side.rule.when, other.rule.when)
        yield from _fields(thing, name, side.settings, other.settings)
    for name, side in after.items():
        if name not in before:
            yield Change("added", thing, name, after=side.summary)


def _fields(thing: Thing, name: str, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Change]:
    for key in dict.fromkeys((*before, *after)):
        old, new = before.get(key, "none"), after.get(key, "none")
        if old != new:
            yield Change("changed", thing, name, key, old, new)


def _conditions(rule: str, before: str, after: str) -> Iterator[Change]:
    """Numbers one by one where only numbers differ; else both conditions whole."""
    olds, news = _TOKEN.findall(before), _TOKEN.findall(after)
    changed = [i for i, (old, new) in enumerate(zip(olds, news, strict=False)) if old != new]
    both_numbers = all(_NUMBER.match(olds[i]) and _NUMBER.match(news[i]) for i in changed)
    if len(olds) != len(news) or not both_numbers:
        yield Change("changed", "rule", rule, "when", _one_line(before), _one_line(after))
        return
    for i in changed:
        option = olds[i - 2] if i > 1 and olds[i - 1] == "=" else "threshold"
        yield Change("changed", "rule", rule, option, olds[i], news[i])


def _order(before: Policy, after: Policy) -> Iterator[Change]:
    """The order of rules that both have: of two that steer by the same vector, the first wins."""
    olds, news = [rule.id for rule in before.rules], [rule.id for rule in after.rules]
    common = set(olds) & set(news)
    old = [rule for rule in olds if rule in common]
    new = [rule for rule in news if rule in common]
    if old != new:
        yield Change("changed", "policy", "", "order of rules", ", ".join(old), ", ".join(new))


def _flat(model: Strict, leave_out: set[str] | None = None) -> dict[str, str]:
    """`{"match.tenants": "[a, b]", …}`: one line of text for each setting."""
    lines: dict[str, str] = {}
    _flatten(model.model_dump(mode="json", exclude=leave_out), "", lines)
    return lines


def _flatten(value: Any, key: str, lines: dict[str, str]) -> None:
    match value:
        case dict():
            for name, below in value.items():
                _flatten(below, f"{key}.{name}" if key else name, lines)
        case list() | tuple():
            lines[key] = f"[{', '.join(map(str, value))}]"
        case None:
            lines[key] = "none"
        case str():
            lines[key] = _one_line(value) or '""'
        case _:
            lines[key] = str(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())
