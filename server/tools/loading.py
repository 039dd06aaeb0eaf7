"""Policies from the paths that a user gives: whatever is wrong with them becomes a problem, never an exception."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from guard.errors import PolicyError, Problem
from guard.files import policy_files
from guard.policy import Policy, load_policy
from guard.schema import ExceptionsDocument
from guard.yaml_source import read_source


@dataclass(frozen=True, slots=True)
class Loaded:
    policies: tuple[tuple[Path, Policy], ...]
    problems: tuple[Problem, ...]  # errors, and the warnings of what could be read

    @property
    def ok(self) -> bool:
        return all(problem.severity == "warning" for problem in self.problems)


@dataclass(frozen=True, slots=True)
class Where:
    """What is known of the server that policies are for."""

    monitors: Path | None = None  # its folder of artifacts
    max_response_tokens: int | None = None


def load_all(paths: Sequence[Path], where: Where = Where()) -> Loaded:
    """Every policy that can be read, and all problems of all of them."""
    policies: list[tuple[Path, Policy]] = []
    problems: list[Problem] = []
    monitors, vectors = None, None
    if where.monitors is not None:
        from monitors.artifacts import ArtifactError  # noqa: PLC0415  (slow: only where it is asked for)
        from server.tools.installed import read_installed  # noqa: PLC0415

        try:
            installed = read_installed(where.monitors)
        except (ArtifactError, OSError) as error:
            return Loaded((), (Problem(str(where.monitors), 1, 1, "artifacts", str(error)),))
        monitors, vectors = installed.monitors, installed.vectors
    for path, files in _grouped(paths):
        try:
            policy = load_policy(
                files, monitors=monitors, vectors=vectors, max_response_tokens=where.max_response_tokens
            )
        except PolicyError as error:
            problems += error.problems
        except OSError as error:
            problems.append(unreadable(path, error))
        else:
            policies.append((path, policy))
            problems += policy.warnings
    return Loaded(tuple(policies), tuple(dict.fromkeys(problems)))


def _grouped(paths: Sequence[Path]) -> Iterator[tuple[Path, Path | list[Path]]]:
    """What is read as one policy, by the first path of each.

    Exceptions mean nothing without the policy that they are from. They are read together with those files of their
    folder that are given, too; if none is, with the whole folder, as a server does.
    """
    folders = {path.parent for path in paths if _holds_exceptions(path)}
    done: set[Path] = set()
    for path in paths:
        if path.parent not in folders or not _is_file(path):
            yield path, path
        elif path.parent not in done:
            done.add(path.parent)
            files = list(dict.fromkeys(p for p in paths if p.parent == path.parent and _is_file(p)))
            alone = all(map(_holds_exceptions, files))
            yield (path.parent, path.parent) if alone else (path, files)


def _holds_exceptions(path: Path) -> bool:
    if not _is_file(path):  # a pipe can be read once only
        return False
    try:
        data = read_source(path).root.plain()
    except PolicyError:
        return False
    return isinstance(data, dict) and data.get("kind") == ExceptionsDocument.KIND


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, for one
        return False


def unreadable(path: Path, error: OSError) -> Problem:
    hint = "give a policy file or a folder of *.yaml"
    return Problem(str(path), 1, 1, "unreadable", f"cannot be read: {error.strerror or error}", hint)


def all_files(paths: Iterable[Path]) -> tuple[list[Path], list[Problem]]:
    """The files that paths stand for: themselves, or those of a folder."""
    files: list[Path] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            within = policy_files(path)
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
