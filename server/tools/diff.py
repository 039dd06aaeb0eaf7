"""`interlock policy diff A B`: what differs in meaning."""

from dataclasses import asdict
from pathlib import Path

from guard.diff import diff
from server.tools.loading import load_all
from server.tools.report import ExitCode, Report

DIFFERENT = 1
TROUBLE = 2  # as diff(1): a policy that can't be read is not a difference


def diff_policies(before: Path, after: Path) -> Report:
    loaded = [load_all([path]) for path in (before, after)]
    errors = tuple(p for side in loaded for p in side.problems if p.severity == "error")
    if errors:
        return Report("diff", problems=errors, data={"equal": None, "changes": []}, code=TROUBLE)
    one, other = (policy for side in loaded for _, policy in side.policies)
    changes = diff(one, other)
    lines = tuple(map(str, changes))
    data = {
        "before": {"path": str(before), "policy": str(one)},
        "after": {"path": str(after), "policy": str(other)},
        "equal": not changes,
        "changes": [asdict(change) for change in changes],
    }
    code = DIFFERENT if changes else ExitCode.OK
    return Report("diff", "\n".join(lines), data, notices=lines, code=code)
