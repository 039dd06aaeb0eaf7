"""A policy: the rules in force, and how they are read from a file or a folder."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from guard.checks import Checker
from guard.decider import Decider
from guard.durations import seconds
from guard.errors import PolicyError, Problem
from guard.expressions import Exceeds, bound, budgets
from guard.files import policy_files
from guard.rules import Rule, Waiver
from guard.schema import LOG_CONTENTS, CaseSpec, Document, Log, PolicyDocument
from guard.types import Mode, MonitorInfo, Phase, Subject, VectorInfo
from guard.validate import read_document
from guard.yaml_source import Source, read_source, source_from_text


@dataclass(frozen=True)
class Policy:
    """Rules, exceptions and tests of one or more files, checked and immutable."""

    name: str
    version: str
    digest: (
        str  # sha256 of the documents, and of the thresholds that their budgets stand for, as canonical JSON
    )
    rules: tuple[Rule, ...]  # in the order in which they win, where their actions are equally severe
    waivers: tuple[Waiver, ...]
    tests: tuple[CaseSpec, ...]
    documents: tuple[Document, ...]
    files: tuple[str, ...]
    warnings: tuple[Problem, ...] = field(compare=False)

    def __str__(self) -> str:
        return f"{self.name}@{self.version}#{self.digest[:12]}"

    @cached_property
    def monitors(self) -> frozenset[tuple[Phase, str]]:
        """Every series that some rule may read."""
        return frozenset().union(*(rule.reads for rule in self.rules if rule.mode is not Mode.OFF))

    @cached_property
    def budget_s(self) -> float:
        """Wall time that deciding one step may take: the smallest of the files'."""
        return min(seconds(document.defaults.budget) for document in self._policy_documents)

    @cached_property
    def log(self) -> Log:
        """What is recorded: the least content that any file allows, the largest sample that any file asks for."""
        logs = [document.defaults.log for document in self._policy_documents]
        content = min((log.content for log in logs), key=LOG_CONTENTS.index)
        return Log(content=content, sample=max(log.sample for log in logs))

    @property
    def _policy_documents(self) -> list[PolicyDocument]:
        return [document for document in self.documents if isinstance(document, PolicyDocument)]

    def rule(self, rule_id: str) -> Rule:
        """Raises KeyError."""
        for rule in self.rules:
            if rule.id == rule_id:
                return rule
        raise KeyError(rule_id)

    def decider(self, subject: Subject, *, now: datetime, rollout_bucket: float | None = None) -> Decider:
        """What decides one response. `now` must have a zone; `rollout_bucket` replaces the hash in tests."""
        modes, used = self._modes(subject, now, rollout_bucket)
        return Decider(modes, waivers=used, turn=subject.turn)

    def applied(self, subject: Subject, *, now: datetime) -> tuple[Rule, ...]:
        """The rules that are evaluated for a subject, enforced or in shadow."""
        modes, _ = self._modes(subject, now, None)
        return tuple(rule for rule, mode in modes if mode is not Mode.OFF)

    def _modes(
        self, subject: Subject, now: datetime, rollout_bucket: float | None
    ) -> tuple[list[tuple[Rule, Mode]], tuple[str, ...]]:
        """The rules that cover a subject, each in its mode, and the exceptions that weakened some."""
        modes: list[tuple[Rule, Mode]] = []
        used: list[str] = []
        for rule in self.rules:
            if not rule.match.covers(subject):
                continue
            mode = rule.mode_for(subject, rollout_bucket)
            for waiver in self.waivers:
                if waiver.covers(rule, subject, now) and _WEAKNESS[waiver.mode] > _WEAKNESS[mode]:
                    mode = waiver.mode
                    used.append(waiver.id)
            modes.append((rule, mode))
        return modes, tuple(dict.fromkeys(used))

    def with_thresholds(self, threshold_of: Callable[[Exceeds], float | None]) -> "Policy":
        """The same policy with other thresholds for its budgets; None leaves one as it is."""
        rules = tuple(replace(rule, condition=bound(rule.condition, threshold_of)) for rule in self.rules)
        return replace(self, rules=rules)


_WEAKNESS = {Mode.ENFORCE: 0, Mode.SHADOW: 1, Mode.OFF: 2}


def load_policy(
    path: Path | str | Sequence[Path],
    *,
    monitors: Mapping[str, MonitorInfo] | None = None,
    vectors: Mapping[str, VectorInfo] | None = None,
    max_response_tokens: int | None = None,
    targets: Collection[str] | None = None,
) -> Policy:
    """Read a file, all *.yaml of a folder, or some files of one folder, as one policy.

    Raises PolicyError with every problem, or OSError if a folder can't be listed.

    `monitors` and `vectors` are what the server has loaded, `max_response_tokens` how long its responses can get, and
    `targets` the names of those that it can ask for a second opinion.
    None: what needs to know is not checked, and a budget of a monitor has no threshold.
    """
    if isinstance(path, Path | str):
        path = Path(path)
        files, name = policy_files(path), path.name
    else:
        files, name = sorted(path), path[0].absolute().parent.name
    if not files:
        hint = "a policy folder holds its *.yaml files directly"
        raise PolicyError([Problem(str(path), 1, 1, "empty", "no *.yaml file in this folder", hint)])
    problems: list[Problem] = []
    sources: list[Source] = []
    for file in files:
        try:
            sources.append(read_source(file))
        except PolicyError as error:
            problems += error.problems
    return _policy(sources, problems, name, Checker(monitors, vectors, max_response_tokens, targets))


def policy_from_text(
    text: str,
    *,
    file: str = "policy.yaml",
    monitors: Mapping[str, MonitorInfo] | None = None,
    vectors: Mapping[str, VectorInfo] | None = None,
    max_response_tokens: int | None = None,
    targets: Collection[str] | None = None,
) -> Policy:
    """The same from text at hand. Raises PolicyError."""
    checker = Checker(monitors, vectors, max_response_tokens, targets)
    return _policy([source_from_text(text, file)], [], file, checker)


def _policy(sources: list[Source], problems: list[Problem], name: str, checker: Checker) -> Policy:
    read: list[tuple[Source, Document]] = []
    for source in sources:
        try:
            read.append((source, read_document(source)))
        except PolicyError as error:
            problems += sorted(
                (*error.problems, *checker.conditions_of(source)), key=lambda p: (p.line, p.col)
            )
    for source, document in read:
        checker.add(source, document)
    problems += checker.finish(complete=not problems)
    if any(problem.severity == "error" for problem in problems):
        raise PolicyError(problems)
    documents = tuple(document for _, document in read)
    policies = [document for document in documents if isinstance(document, PolicyDocument)]
    return Policy(
        name=policies[0].metadata.name if len(policies) == 1 else name,
        version="+".join(dict.fromkeys(document.metadata.version for document in policies)),
        digest=_digest([source.root.plain() for source, _ in read], checker.rules),
        rules=checker.rules,
        waivers=tuple(checker.waivers),
        tests=tuple(test for document in documents for test in document.tests),
        documents=documents,
        files=tuple(source.file for source, _ in read),
        warnings=tuple(problems),
    )


def _digest(documents: list[object], rules: tuple[Rule, ...]) -> str:
    found = {budget for rule in rules for budget in budgets(rule.condition) if budget.threshold is not None}
    thresholds = [{str(budget): budget.threshold} for budget in sorted(found, key=str)]
    canonical = json.dumps(
        documents + thresholds, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return sha256(canonical.encode()).hexdigest()
