"""The guides' commands are run as they stand: one shell a page, in a folder of its own, with ports that are nobody else's."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDES = sorted(path for path in (ROOT / "docs" / "guides").glob("*.md") if path.name != "README.md")
ALONE = ["unshare", "--net", "--", "bash", "-c", 'ip link set lo up && exec bash "$0"']


def commands(page):
    """The bash blocks of a page, in order."""
    return "\n".join(re.findall(r"^```bash\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL))


def test_guides_have_commands():
    assert len(GUIDES) >= 5
    assert all(commands(page) for page in GUIDES)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_a_guide_can_be_followed(tmp_path, page):
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    script = tmp_path / "guide.sh"
    script.write_text(
        f"set -Eeuo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{commands(page)}"
    )
    bin_folder = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    said = subprocess.run(  # noqa: S603  # ours
        [*alone(), str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert said.returncode == 0, f"{said.stdout[-2000:]}\n{said.stderr[-3000:]}"
    assert "Traceback" not in said.stderr


def alone():
    """A network of its own, so that the ports in the guides are free whatever runs here."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("no unshare or ip (Debian: util-linux, iproute2)")
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)  # noqa: S607
    if tried.returncode:
        pytest.skip("this user may not make a network of its own")
    return ALONE
