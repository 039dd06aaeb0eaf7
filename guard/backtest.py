"""A candidate policy on recorded traffic: whose decision would be another one, by which rule, and what can't be known.

Records are taken one by one, and only counts and a few examples are kept, so that a log may be of any length.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from guard.policy import Policy
from guard.recorded import Recorded, UnjudgedError, read_record
from guard.replay import replay
from guard.rules import Rule
from guard.types import Answer, JsonObject, Mode, OnError, Outcome, Phase

_STOPPED = ("block", "replace", "unavailable")


@dataclass(frozen=True, slots=True)
class Rejudged:
    """One response under the policy of its time and under the candidate."""

    recorded: Recorded
    after: Outcome
    blind: Mapping[str, str] = field(default_factory=dict)  # rules left out -> the series that each lacks

    @property
    def same(self) -> bool:
        """The same to the last bit: verdict, place, every match with its values, every failure. No rule was left out."""
        return not self.blind and self.same_in_part

    @property
    def same_in_part(self) -> bool:
        """The same, as far as rules could be judged."""
        return self.after == self.recorded.outcome

    @property
    def open_ended(self) -> bool:
        """The recorded reply was stopped and would not be now: what the model would have said next is not known."""
        return self.recorded.outcome.verdict in _STOPPED and self.after.verdict not in _STOPPED

    @property
    def asks_anew(self) -> list[str]:
        """The rules that would ask for a second opinion that was not recorded: what it would say is not known."""
        return [o.rule for o in self.after.opinions if o.advice.answer is Answer.UNKNOWN]


def rejudge(policy: Policy, record: JsonObject) -> Rejudged:
    """Decide a record again, at its own time, by the rules whose scores were recorded. Raises UnjudgedError if none is left."""
    recorded = read_record(record)
    rules = policy.applied(recorded.subject, now=recorded.now)
    blind = _blind(rules, recorded, Phase.PROMPT)
    after = _decide(policy, recorded, without=blind)
    stopped_at_once = (
        after.phase is Phase.PROMPT and after.verdict in _STOPPED
    )  # then there is no response to look at
    if not stopped_at_once and (in_response := _blind(rules, recorded, Phase.RESPONSE)):
        blind = {**in_response, **blind}
        after = _decide(policy, recorded, without=blind)
    if blind and len(blind) == len(rules):
        raise UnjudgedError(f"no scores of {next(iter(blind.values()))} were recorded")
    return Rejudged(recorded, after, blind)


def _blind(rules: Sequence[Rule], recorded: Recorded, phase: Phase) -> dict[str, str]:
    """The rules that lack a series of a phase, with the first that they lack."""
    lacking = {rule.id: recorded.lacks(rule.reads, phase) for rule in rules}
    return {rule: series for rule, series in lacking.items() if series}


def _decide(policy: Policy, recorded: Recorded, *, without: Collection[str]) -> Outcome:
    if without:
        policy = replace(policy, rules=tuple(rule for rule in policy.rules if rule.id not in without))
    return replay(
        policy,
        recorded.subject,
        recorded.series[Phase.PROMPT],
        recorded.series[Phase.RESPONSE],
        recorded.now,
        advise=recorded.advise,
        num_prompt=recorded.num_tokens[Phase.PROMPT],
        num_response=recorded.num_tokens[Phase.RESPONSE],
        prompt_complete=recorded.prompt_complete,
        lost=recorded.lost,
    )


@dataclass(slots=True)
class Group:
    """Decisions of one sort: how many, and the first few by their ids."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str, keep: int) -> None:
        self.count += 1
        if len(self.examples) < keep:
            self.examples.append(example)


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """From one verdict to another, each with the rule that made it; "" where none did."""

    before: str
    before_rule: str
    after: str
    after_rule: str

    def __str__(self) -> str:
        return f"{_by(self.before, self.before_rule)} -> {_by(self.after, self.after_rule)}"


@dataclass(slots=True)
class Backtest:
    """The tally."""

    policy: Policy
    keep: int = 5  # examples of each sort
    num_judged: int = 0
    num_tokens: int = 0
    num_same: int = 0
    num_same_in_part: int = 0  # the same, but some rule was left out
    num_rounded: int = 0
    num_open_ended: int = 0
    would_ask: dict[str, Group] = field(default_factory=dict)
    """By rule: responses about which it would ask for a second opinion, and none was recorded."""
    verdicts_before: Counter[str] = field(default_factory=Counter)
    verdicts_after: Counter[str] = field(default_factory=Counter)
    changes: dict[Change, Group] = field(default_factory=dict)
    shifted: Group = field(default_factory=Group)
    """The same verdict, but by another rule, at another token or with other values."""
    blind: dict[tuple[str, str], Group] = field(default_factory=dict)
    """By rule and the series that it lacks: records that were judged without it."""
    unjudged: dict[str, Group] = field(default_factory=dict)
    recorded_under: Counter[str] = field(default_factory=Counter)

    @property
    def num_unjudged(self) -> int:
        return sum(group.count for group in self.unjudged.values())

    @property
    def num_changed(self) -> int:
        return sum(group.count for group in self.changes.values())

    def add(self, record: JsonObject, place: str) -> None:
        """Decide one record again and count it. `place` names a record that has no id."""
        try:
            judged = rejudge(self.policy, record)
        except UnjudgedError as error:
            self.skip(str(error), _name(record) or place)
            return
        self._count(judged)

    def skip(self, reason: str, place: str) -> None:
        """Count a record that cannot be judged."""
        self.unjudged.setdefault(reason, Group()).add(place, self.keep)

    def _count(self, judged: Rejudged) -> None:
        recorded, after = judged.recorded, judged.after
        before = recorded.outcome
        self.num_judged += 1
        self.num_tokens += sum(recorded.num_tokens.values())
        self.num_rounded += recorded.rounded
        self.num_open_ended += judged.open_ended
        name = f"{recorded.decision_id}#{recorded.choice}" if recorded.choice else recorded.decision_id
        for rule in dict.fromkeys(judged.asks_anew):
            self.would_ask.setdefault(rule, Group()).add(name, self.keep)
        self.verdicts_before[before.verdict] += 1
        self.verdicts_after[after.verdict] += 1
        self.recorded_under[recorded.policy] += 1
        for rule, series in judged.blind.items():
            self.blind.setdefault((rule, series), Group()).add(name, self.keep)
        if judged.same:
            self.num_same += 1
        elif judged.same_in_part:
            self.num_same_in_part += 1
        elif before.verdict == after.verdict:
            self.shifted.add(name, self.keep)
        else:
            change = Change(before.verdict, acting_rule(before), after.verdict, acting_rule(after))
            self.changes.setdefault(change, Group()).add(name, self.keep)


def acting_rule(outcome: Outcome) -> str:
    """The rule that made the verdict; "" where every rule let the response pass."""
    if outcome.unavailable:
        closed = (f.rule for f in outcome.failures if f.mode is Mode.ENFORCE and f.on_error is OnError.CLOSED)
        return next(closed, "")
    if refused := next((o.rule for o in outcome.opinions if not o.allowed), ""):
        return refused
    return next((m.rule for m in outcome.matches if m.severity is outcome.action), "")


def _by(verdict: str, rule: str) -> str:
    return f"{verdict} by rule {rule}" if rule else verdict


def _name(record: JsonObject) -> str:
    name = record.get("decision_id") if isinstance(record, dict) else None
    return name if isinstance(name, str) else ""
