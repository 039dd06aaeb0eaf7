"""The guard imports neither torch nor HTTP, so that its tests and replays stay fast and pure."""

import subprocess
import sys


def test_importing_the_guard_loads_no_heavy_library():
    command = [
        sys.executable,
        "-c",
        "import sys, guard.policy_test, guard.audit, guard.backtest, guard.layout; print(*sys.modules)",
    ]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()  # noqa: S603
    assert not {"torch", "transformers", "fastapi", "httpx", "monitors", "server"} & set(loaded)
