"""From documents to rules: parse the conditions, fill in defaults, and check what one document cannot show alone."""

from collections.abc import Collection, Iterable, Mapping

from guard.actions.block import Block
from guard.actions.steer import Steer
from guard.errors import ExpressionError, Flaw, Problem, did_you_mean
from guard.expressions import Condition
from guard.lint import always_true, rule_warnings, unreachable
from guard.parser import parse
from guard.rules import Rule, Waiver
from guard.schema import CaseSpec, Document, ExceptionsDocument, PolicyDocument, RuleSpec
from guard.scope import any_glob
from guard.types import Mode, MonitorInfo, OnError, Phase
from guard.yaml_source import Path_, Source


class Checker:
    """Takes documents one by one and keeps the rules, the exceptions and every problem."""

    def __init__(self, monitors: Mapping[str, MonitorInfo] | None, vectors: Collection[str] | None) -> None:
        self.rules: list[Rule] = []
        self.waivers: list[Waiver] = []
        self._monitors = monitors
        self._vectors = vectors
        self._problems: list[Problem] = []
        self._sources: list[tuple[Source, Document]] = []
        self._first: dict[str, Problem] = {}  # id of a rule or an exception -> its place

    def add(self, source: Source, document: Document) -> None:
        self._sources.append((source, document))
        match document:
            case PolicyDocument():
                for i, spec in enumerate(document.rules):
                    self._rule(source, document, spec, ("rules", i))
            case ExceptionsDocument():
                self._exceptions(source, document)

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
        self._check_action(source, document, spec, path, mode)
        condition = self._condition(source, spec.when, (*path, "when"))
        if condition is None:
            return
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
            file=source.file,
        )
        self.rules.append(rule)

    def _condition(self, source: Source, when: str, path: Path_) -> Condition | None:
        try:
            condition = parse(when, self._monitors)
        except ExpressionError as error:
            self._flaws(source, path, error.flaws)
            return None
        self._flaws(source, path, unreachable(condition, self._monitors))
        for flaw in always_true(condition, self._monitors):
            self._add(
                source.problem(path, flaw.code, flaw.message, flaw.hint, offset=flaw.at, severity="warning")
            )
        return condition

    def _flaws(self, source: Source, path: Path_, flaws: Iterable[Flaw]) -> None:
        for flaw in flaws:
            self._add(source.problem(path, flaw.code, flaw.message, flaw.hint, offset=flaw.at))

    def _check_action(
        self, source: Source, document: PolicyDocument, spec: RuleSpec, path: Path_, mode: Mode
    ) -> None:
        action = spec.action
        if isinstance(action, Steer) and self._vectors is not None and action.vector not in self._vectors:
            where = (*path, "then", "steer", "vector")
            hint = did_you_mean(action.vector, self._vectors) or "no steering vectors are loaded"
            self._add(
                source.problem(where, "unknown-vector", f"unknown steering vector '{action.vector}'", hint)
            )
        maturity = document.metadata.maturity
        if isinstance(action, Block) and mode is Mode.ENFORCE and maturity != "stable" and not spec.override:
            message = (
                f"rule '{spec.id}' blocks, but the policy's maturity is '{maturity}'; only stable ones may"
            )
            hint = "use `mode: shadow`, or give the rule an override: {reason: ...}"
            self._add(source.problem((*path, "then", "block"), "immature-block", message, hint, at_key=True))

    # --- exceptions

    def _exceptions(self, source: Source, document: ExceptionsDocument) -> None:
        for i, spec in enumerate(document.exceptions):
            self._unique(source, ("exceptions", i, "id"), "exception", spec.id)
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
        for source, document in self._sources:
            match document:
                case PolicyDocument():
                    self._doubts(source, document, rules, frozenset(named))
                case ExceptionsDocument():
                    self._check_waived(source, document)
            for i, test in enumerate(document.tests):
                self._check_test(source, test, ("tests", i), rules)

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

    def _check_test(self, source: Source, test: CaseSpec, path: Path_, rules: dict[str, Rule]) -> None:
        for key, names in (("rules", test.expect.rules), ("shadow", test.expect.shadow)):
            for j, name in enumerate(names or ()):
                if name not in rules:
                    where = (*path, "expect", key, j)
                    hint = did_you_mean(name, rules)
                    self._add(source.problem(where, "unknown-rule", f"no rule is called '{name}'", hint))
        read = frozenset().union(*(rule.reads for rule in self.rules))
        for phase, series in ((Phase.PROMPT, test.given.prompt), (Phase.RESPONSE, test.given.response)):
            known = {name for of, name in read if of is phase}
            for name in series:
                if name not in known:
                    message = f"no rule reads {phase}.{name}"
                    where = (*path, "given", phase.value, name)
                    hint = did_you_mean(name, known)
                    self._add(
                        source.problem(where, "unused-series", message, hint, at_key=True, severity="warning")
                    )
