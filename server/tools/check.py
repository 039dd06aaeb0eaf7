"""`interlock policy check`: every problem of every file."""

from collections.abc import Sequence
from pathlib import Path

from server.tools.loading import Where, load_all
from server.tools.report import ExitCode, Report


def check(paths: Sequence[Path], where: Where, *, strict: bool) -> Report:
    loaded = load_all(paths, where)
    code = ExitCode.OK if loaded.ok else ExitCode.ERRORS
    if strict and loaded.ok and loaded.problems:
        code = ExitCode.WARNINGS
    lines = [
        f"ok: {policy} ({len(policy.rules)} rules, {len(policy.tests)} tests)"
        for _, policy in loaded.policies
    ]
    policies = [
        {
            "path": str(path),
            "name": policy.name,
            "version": policy.version,
            "digest": policy.digest,
            "rules": len(policy.rules),
            "exceptions": len(policy.waivers),
            "tests": len(policy.tests),
        }
        for path, policy in loaded.policies
    ]
    return Report("check", "\n".join(lines), {"policies": policies}, loaded.problems, code=code)
