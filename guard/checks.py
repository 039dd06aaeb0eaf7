"""From documents to rules: parse the conditions, fill in defaults, and check what one document cannot show alone."""

from collections.abc import Collection, Iterable, Mapping
from typing import Literal

from guard.actions.escalate import Escalate
from guard.actions.steer import Steer
from guard.budgets import with_budgets
from guard.case_checks import case_problems
from guard.errors import ExpressionError, Flaw, Problem, did_you_mean
from guard.expressions import Condition, calls
from guard.gates import refusals
from guard.lint import Known, doubtful, out_of_calibration, rule_warnings, unreachable
from guard.overlap import overlaps
from guard.parser import MAX_CHARACTERS, parse
from guard.rules import Rule, Waiver
from guard.schema import Document, ExceptionsDocument, PolicyDocument, RuleSpec
from guard.scope import Match, any_glob
from guard.types import Gate, Mode, MonitorInfo, OnError, VectorInfo
from guard.yaml_source import Path_, Source


class Checker:
    """Takes documents one by one and keeps the rules, the exceptions and every problem."""

    def __init__(
        self,
        monitors: Mapping[str, MonitorInfo] | None,
        vectors: Mapping[str, VectorInfo] | None,
        max_response_tokens: int | None,
        targets: Collection[str] | None,
    ) -> None:
        self._rules: list[Rule] = []
        self.waivers: list[Waiver] = []
        self._known = Known(monitors, max_response_tokens)
        self._vectors = vectors
        self._targets = targets
        self._problems: list[Problem] = []
        self._sources: list[tuple[Source, Document]] = []
        self._first: dict[str, Problem] = {}  # id of a rule or an exception -> its place

    @property
    def rules(self) -> tuple[Rule, ...]:
        """In the order in which they win: by precedence, then as they stand in the files."""
        return tuple(sorted(self._rules, key=lambda rule: -rule.precedence))

    def add(self, source: Source, document: Document) -> None:
        self._sources.append((source, document))
        match document:
            case PolicyDocument():
                for i, spec in enumerate(document.rules):
                    self._rule(source, document, spec, ("rules", i))
            case ExceptionsDocument():
                self._exceptions(source, document)

    def conditions_of(self, source: Source) -> list[Problem]:
        """What is wrong with the conditions of a file whose form is wrong, too: all mistakes are told at once."""
        data = source.root.plain()
        rules = data.get("rules") if isinstance(data, dict) else None
        told: list[Problem] = []
        for i, rule in enumerate(rules if isinstance(rules, tuple) else ()):
            when = rule.get("when") if isinstance(rule, dict) else None
            if isinstance(when, str) and len(when) <= MAX_CHARACTERS:  # the schema tells longer ones
                try:
                    parse(when, self._known.monitors)
                except ExpressionError as error:
                    path = ("rules", i, "when")
                    told += [
                        source.problem(path, f.code, f.message, f.hint, offset=f.at) for f in error.flaws
                    ]
        return told

    def finish(self, *, complete: bool) -> list[Problem]:
        """What only all documents together can show. `complete`: every file could be read."""
        if complete:
            if not any(isinstance(document, PolicyDocument) for _, document in self._sources):
                source = self._sources[0][0]
                hint = "put it in the folder of its policy and load the folder"
                self._add(
                    source.problem(
                        ("kind",), "no-policy", "exceptions need the policy that they are from", hint
                    )
                )
            if not any(problem.severity == "error" for problem in self._problems):
                self._check_references()
        return self._problems

    def _add(self, problem: Problem) -> None:
        self._problems.append(problem)

    def _unique(self, source: Source, path: Path_, kind: str, name: str) -> None:
        here = source.problem(path, "duplicate-id", f"the {kind} id '{name}' is used twice")
        first = self._first.setdefault(f"{kind} {name}", here)
        if first is not here:
            hint = f"it is already used at {first.file}:{first.line}:{first.col}"
            self._add(source.problem(path, here.code, here.message, hint))

    # --- rules

    def _rule(self, source: Source, document: PolicyDocument, spec: RuleSpec, path: Path_) -> None:
        self._unique(source, (*path, "id"), "rule", spec.id)
        mode = Mode(spec.mode or document.defaults.mode)
        self._check_match(source, spec.match, (*path, "match"))
        self._check_vector(source, spec, path)
        self._check_target(source, spec, path)
        condition = self._condition(source, spec.when, (*path, "when"))
        if condition is None:
            return
        self._check_pins(source, spec, path, {call.series.monitor for call in calls(condition)})
        overridden: tuple[Gate, ...] = ()
        if mode is Mode.ENFORCE:
            overridden = self._gates(source, document, spec, path, condition)
        rule = Rule(
            id=spec.id,
            severity=spec.severity,
            description=spec.description,
            tags=spec.tags,
            match=spec.match,
            when=spec.when,
            condition=condition,
            action=spec.action,
            mode=mode,
            on_error=OnError(spec.on_error or document.defaults.on_error),
            rollout=spec.rollout,
            holdback=document.defaults.holdback,
            precedence=document.metadata.precedence,
            override=spec.override.reason if spec.override else "",
            overridden=overridden,
            file=source.file,
        )
        self._flaws(source, (*path, "when"), out_of_calibration(rule, self._known), "warning")
        self._rules.append(rule)

    def _condition(self, source: Source, when: str, path: Path_) -> Condition | None:
        try:
            condition = parse(when, self._known.monitors)
        except ExpressionError as error:
            self._flaws(source, path, error.flaws)
            return None
        if self._known.monitors is not None:
            condition, flaws = with_budgets(condition, self._known.monitors)
            if flaws:
                self._flaws(source, path, flaws)
                return None
        self._flaws(source, path, unreachable(condition, self._known))
        self._flaws(source, path, doubtful(condition, self._known), "warning")
        return condition

    def _flaws(
        self,
        source: Source,
        path: Path_,
        flaws: Iterable[Flaw],
        severity: Literal["error", "warning"] = "error",
    ) -> None:
        for flaw in flaws:
            self._add(
                source.problem(path, flaw.code, flaw.message, flaw.hint, offset=flaw.at, severity=severity)
            )

    def _check_match(self, source: Source, match: Match, path: Path_) -> None:
        if match.nobody:
            message = f"this applies to nobody: {match.nobody}"
            self._add(source.problem(path, "unreachable", message, "a part that is left out fits everything"))
        for below, message in match.doubtful:
            hint = "`*` fits anything, `?` one character, [abc] one of three"
            self._add(source.problem((*path, *below), "odd-glob", message, hint, severity="warning"))

    def _gates(
        self, source: Source, document: PolicyDocument, spec: RuleSpec, path: Path_, condition: Condition
    ) -> tuple[Gate, ...]:
        """The gates that an enforced rule goes without, by its override. Without one, they are errors."""
        refused = list(
            refusals(
                spec.action,
                condition,
                maturity=document.metadata.maturity,
                monitors=self._known.monitors,
                vectors=self._vectors,
            )
        )
        if spec.override:
            return tuple(dict.fromkeys(refusal.gate for refusal in refused))
        where = (*path, "then", spec.action.kind)
        for refusal in refused:
            self._add(source.problem(where, refusal.code, refusal.message, refusal.hint, at_key=True))
        return ()

    def _check_vector(self, source: Source, spec: RuleSpec, path: Path_) -> None:
        action = spec.action
        if isinstance(action, Steer) and self._vectors is not None and action.vector not in self._vectors:
            where = (*path, "then", "steer", "vector")
            hint = did_you_mean(action.vector, self._vectors) or "no steering vectors are loaded"
            self._add(
                source.problem(where, "unknown-vector", f"unknown steering vector '{action.vector}'", hint)
            )

    def _check_pins(self, source: Source, spec: RuleSpec, path: Path_, read: set[str]) -> None:
        for i, pin in enumerate(spec.pins):
            name, _, version = pin.partition("@")
            where = (*path, "pins", i)
            installed = self._known.monitors
            if name not in read:
                hint = did_you_mean(name, read)
                self._add(source.problem(where, "unused-pin", f"the rule does not read '{name}'", hint))
            elif installed is not None and installed[name].version != version:
                message = f"the rule is for {pin}, and {name}@{installed[name].version} is installed"
                hint = f"install {pin}, or try the rule on the other version and pin that"
                self._add(source.problem(where, "other-version", message, hint))

    def _check_target(self, source: Source, spec: RuleSpec, path: Path_) -> None:
        action = spec.action
        if isinstance(action, Escalate) and self._targets is not None and action.to not in self._targets:
            where = (*path, "then", "escalate", "to")
            hint = did_you_mean(action.to, self._targets) or "this server has none: see --second-opinions"
            message = f"unknown target of second opinions '{action.to}'"
            self._add(source.problem(where, "unknown-target", message, hint))

    # --- exceptions

    def _exceptions(self, source: Source, document: ExceptionsDocument) -> None:
        for i, spec in enumerate(document.exceptions):
            self._unique(source, ("exceptions", i, "id"), "exception", spec.id)
            self._check_match(source, spec.match, ("exceptions", i, "match"))
            self.waivers.append(
                Waiver(
                    id=spec.id,
                    rules=spec.rules,
                    match=spec.match,
                    mode=Mode(spec.mode),
                    starts=spec.starts,
                    expires=spec.expires,
                    reason=spec.reason,
                    approved_by=spec.approved_by,
                )
            )

    # --- all together

    def _check_references(self) -> None:
        tests = [test for _, document in self._sources for test in document.tests]
        named = [rule for test in tests for rule in (*(test.expect.rules or ()), *(test.expect.shadow or ()))]
        rules = {rule.id: rule for rule in self.rules}
        if not rules:
            message, hint = "this policy has no rules, so nothing is watched", "add some under `rules:`"
            self._add(self._sources[0][0].problem((), "no-rules", message, hint, severity="warning"))
        for source, document in self._sources:
            match document:
                case PolicyDocument():
                    self._doubts(source, document, rules, frozenset(named))
                case ExceptionsDocument():
                    self._check_waived(source, document)
            for i, test in enumerate(document.tests):
                before = {other.name for other in document.tests[:i]}
                self._problems += case_problems(source, test, ("tests", i), self.rules, before)
        self._check_overlaps()

    def _check_overlaps(self) -> None:
        places = {
            spec.id: (source, ("rules", i, "when"))
            for source, document in self._sources
            if isinstance(document, PolicyDocument)
            for i, spec in enumerate(document.rules)
        }
        for overlap in overlaps(self.rules):
            source, path = places[overlap.rule.id]
            other_source, other_path = places[overlap.other.id]
            there = other_source.problem(other_path, overlap.code, overlap.message)
            hint = f"{overlap.hint}; the other stands at {there.file}:{there.line}:{there.col}"
            self._add(source.problem(path, overlap.code, overlap.message, hint, severity="warning"))

    def _doubts(
        self, source: Source, document: PolicyDocument, rules: dict[str, Rule], tested: frozenset[str]
    ) -> None:
        for i, spec in enumerate(document.rules):
            for key, code, message, hint in rule_warnings(rules[spec.id], tested):
                self._add(source.problem(("rules", i, key), code, message, hint, severity="warning"))

    def _check_waived(self, source: Source, document: ExceptionsDocument) -> None:
        for i, spec in enumerate(document.exceptions):
            for j, glob in enumerate(spec.rules):
                covered = [rule for rule in self.rules if any_glob((glob,), rule.id)]
                path = ("exceptions", i, "rules", j)
                if not covered:
                    hint = did_you_mean(glob, [rule.id for rule in self.rules])
                    self._add(source.problem(path, "unknown-rule", f"no rule is called '{glob}'", hint))
                critical = [rule.id for rule in covered if rule.severity == "critical"]
                if spec.mode == "off" and critical:
                    message = f"rule '{critical[0]}' is critical and cannot be switched off by an exception"
                    self._add(source.problem(path, "critical-off", message, "use `mode: shadow`"))
