"""A rule in plain words: when it is decided, on what, whom it applies to, and what happens then."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

from guard.actions.annotate import Annotate
from guard.actions.base import Action
from guard.actions.block import Block
from guard.actions.escalate import Escalate
from guard.actions.log import Log
from guard.actions.refusing import Refusing
from guard.actions.replace import Replace
from guard.actions.steer import Steer
from guard.expressions import Call, calls
from guard.functions import FUNCTIONS
from guard.policy import Policy
from guard.rules import Rule, Waiver
from guard.scope import Match, any_glob
from guard.types import Mode, OnError


@dataclass(frozen=True, slots=True)
class Explanation:
    """One rule. Each line is a label and what is to be said under it."""

    rule: str
    head: str
    lines: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        width = max(len(label) for label, _ in self.lines)
        body = "\n".join(f"  {label:<{width}}  {text}" for label, text in self.lines)
        return f"{self.head}\n{body}"


def explain(policy: Policy, rule: Rule, now: datetime) -> Explanation:
    """`now` decides which exceptions are told as being in force."""
    head = f"rule {rule.id} (severity {rule.severity}, mode {rule.mode}), {rule.file}"
    return Explanation(rule.id, head, tuple(_lines(policy, rule, now)))


def _lines(policy: Policy, rule: Rule, now: datetime) -> Iterator[tuple[str, str]]:
    if rule.description:
        yield "about", " ".join(rule.description.split())
    yield "when", " ".join(rule.when.split())
    yield "decided", _decided(rule)
    for call in calls(rule.condition):
        yield "reads", _call(call)
    yield "unknown", _unknown(rule)
    yield "applies to", _whom(rule.match)
    if rule.mode is Mode.ENFORCE and rule.rollout:
        percent = f"{rule.rollout.percent:g} %"
        by = rule.rollout.by
        yield (
            "rollout",
            f"enforced for a stable {percent} (each {by} always on the same side); the rest runs it in shadow",
        )
    yield from (("exception", _waiver(w, now)) for w in policy.waivers if any_glob(w.rules, rule.id))
    yield "then", _mode_words(rule.mode) + _action(rule.action)
    if rule.override:
        yield "override", f"it may act without the evidence that this needs, because: {rule.override}"
    yield "on error", _on_error(rule)
    yield "holds back", _held(rule)


def _decided(rule: Rule) -> str:
    if rule.mode is Mode.OFF:
        return "never: the rule is switched off"
    if not rule.reads_response:
        return "once, at the end of the prompt, before the first token of the answer"
    return "at the end of the prompt and at each token of the answer; it matches once, at the first token where it is true"


def _call(call: Call) -> str:
    what = (FUNCTIONS[call.function].__doc__ or call.function).strip().rstrip(".")
    what = what[0].lower() + what[1:]
    over = "the last " + _tokens(call.window) if call.window else "all tokens so far"
    first = "the first" if call.need == 1 else f"{call.need}"
    return f"{call.text}: {what} ({call.over}, {over}); known from {first} judged token{'s' * (call.need > 1)} on"


def _tokens(count: int) -> str:
    return f"{count} token" + "s" * (count != 1)


def _unknown(rule: Rule) -> str:
    late = [
        f"{call.text} before {call.need} judged tokens" for call in calls(rule.condition) if call.need > 1
    ]
    if len(late) < len(calls(rule.condition)):
        late.append("the others before the first judged token" if late else "before the first judged token")
    told = "; ".join(late)
    return f"{told}: the comparison is neither true nor false then, and a rule fires on true only"


def _whom(match: Match) -> str:
    parts = [
        f"{label} {', '.join(globs)}"
        for label, globs in (
            ("models", match.models),
            ("tenants", match.tenants),
            ("endpoints", match.endpoints),
        )
        if "*" not in globs
    ]
    parts += [f"not tenants {', '.join(match.not_tenants)}"] if match.not_tenants else []
    parts += [f"metadata {key} = {' or '.join(globs)}" for key, globs in match.metadata.items()]
    return "; ".join(parts) or "everyone"


def _waiver(waiver: Waiver, now: datetime) -> str:
    if now >= waiver.expires:
        state = f"expired {waiver.expires.isoformat()}"
    elif waiver.starts and now < waiver.starts:
        state = f"not in force before {waiver.starts.isoformat()}"
    else:
        state = f"in force until {waiver.expires.isoformat()}"
    return f"{waiver.id} ({state}): {waiver.mode} for {_whom(waiver.match)}, because: {waiver.reason}"


def _mode_words(mode: Mode) -> str:
    match mode:
        case Mode.ENFORCE:
            return ""
        case Mode.SHADOW:
            return "only recorded (shadow). Enforced, it would do this: "
        case Mode.OFF:
            return "nothing (off). Enforced, it would do this: "
        case _:
            assert_never(mode)


def _action(action: Action) -> str:
    match action:
        case Block():
            return f"block: {_refusal(action)}"
        case Escalate():
            none = "is taken for a block" if action.on_timeout == "block" else "lets the answer go on"
            asks = f"{action.to} is asked for a second opinion, and nothing leaves meanwhile"
            return f"escalate: {asks}. Block: {_refusal(action)}. No answer within {action.deadline}, or an error, {none}"
        case Replace():
            return f'replace: the answer ends, and this is given instead: "{action.message}"'
        case Steer():
            until = f"for {_tokens(action.for_tokens)}" if action.for_tokens else "to the end of the answer"
            return f"steer: vector {action.vector} with strength {action.strength:g} from the next token on, {until}"
        case Annotate():
            return "annotate: the reply is marked, its text unchanged"
        case Log():
            return "log: recorded, and nothing else"
        case _:
            return action.kind


def _refusal(action: Refusing) -> str:
    said = f', saying "{action.message}"' if action.message else ""
    return f"the request ends as refused ({action.code}){said}; nothing that is held leaves"


def _on_error(rule: Rule) -> str:
    if rule.mode is not Mode.ENFORCE:
        return "a missing or broken score is recorded and has no effect"
    match rule.on_error:
        case OnError.CLOSED:
            return "closed: a missing or broken score ends the request as unavailable"
        case OnError.OPEN:
            return "open: at a missing or broken score the rule is skipped, and the others go on"
        case _:
            assert_never(rule.on_error)


def _held(rule: Rule) -> str:
    if not rule.reads_response:
        return "nothing: no token of the answer exists before it is decided"
    if rule.mode is not Mode.ENFORCE:
        return "nothing: only an enforced rule holds text back"
    limit = rule.action.at_most_delivered if isinstance(rule.action, Refusing) else None
    if limit == 0:
        return "the whole answer, until it has been judged to its end"
    held = (
        f"the last {_tokens(rule.holdback)} judged"
        if rule.holdback
        else "nothing beyond the token being judged"
    )
    return (
        held
        if limit is None
        else f"{held}; no more than {_tokens(limit)} leave before the answer is judged to its end"
    )
