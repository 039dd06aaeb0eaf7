"""Policies from the paths that a user gives: whatever is wrong with them becomes a problem, never an exception."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from guard.errors import PolicyError, Problem
from guard.policy import Policy, load_policy
from guard.yaml_source import read_source


@dataclass(frozen=True, slots=True)
class Loaded:
    policies: tuple[tuple[Path, Policy], ...]
    problems: tuple[Problem, ...]  # errors, and the warnings of what could be read

    @property
    def ok(self) -> bool:
        return all(problem.severity == "warning" for problem in self.problems)


def load_all(paths: Iterable[Path]) -> Loaded:
    """Every policy that can be read, and all problems of all of them."""
    policies: list[tuple[Path, Policy]] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            policy = load_policy(path)
        except PolicyError as error:
            problems += error.problems
        except OSError as error:
            problems.append(unreadable(path, error))
        else:
            policies.append((path, policy))
            problems += policy.warnings
    return Loaded(tuple(policies), tuple(problems))


def unreadable(path: Path, error: OSError) -> Problem:
    hint = "give a policy file or a folder of *.yaml"
    return Problem(str(path), 1, 1, "unreadable", f"cannot be read: {error.strerror or error}", hint)


def policy_files(paths: Iterable[Path]) -> tuple[list[Path], list[Problem]]:
    """The files that paths stand for: themselves, or the *.yaml directly in a folder."""
    files: list[Path] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            within = (
                sorted(f for f in path.iterdir() if f.suffix in {".yaml", ".yml"})
                if path.is_dir()
                else [path]
            )
        except OSError as error:
            problems.append(unreadable(path, error))
            continue
        files += within
        if not within:
            problems.append(Problem(str(path), 1, 1, "empty", "no *.yaml file in this folder"))
    return files, problems


def test_problem(policy: Policy, index: int, message: str) -> Problem:
    """A failing test as a problem at its place. `index` counts the tests of all files of the policy."""
    for file, document in zip(policy.files, policy.documents, strict=True):
        if index < len(document.tests):
            try:
                return read_source(Path(file)).problem(("tests", index), "test-failed", message)
            except PolicyError:  # the file went away or changed since it was read
                return Problem(file, 1, 1, "test-failed", message)
        index -= len(document.tests)
    raise IndexError(index)
