"""The report of a monitor in a real browser."""

import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from monitors.lab.report import Reported, render
from tests.unit.monitors.lab.report import cards

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)"
)

_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--log-level=0",
    "--hide-scrollbars",
]
_MEASURE = """
<script>
addEventListener("load", () => {
  const sizes = [...document.querySelectorAll("svg")].map(s => s.getBoundingClientRect());
  document.body.dataset.figures = sizes.filter(s => s.width > 200 && s.height > 60).length;
  document.body.dataset.overflow = document.documentElement.scrollWidth > innerWidth;
  document.body.dataset.loaded = performance.getEntriesByType("resource").length;
});
</script>
"""


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("monitors") / "harm"
    cards.write(folder)
    return render(Reported.read(folder), datetime(2026, 11, 27, tzinfo=UTC))


def opened(html: str, tmp_path: Path, width: int) -> tuple[str, str]:
    """The DOM after loading, and what the browser logged. The page's own policy forbids scripts; the copy allows ours."""
    measured = html.replace(
        "style-src 'unsafe-inline'", "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    )
    assert measured != html
    path = tmp_path / "card.html"
    path.write_text(measured.replace("</body>", f"{_MEASURE}</body>"), encoding="utf-8")
    command = [
        str(CHROMIUM),
        *_FLAGS,
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},2000",
    ]
    ran = subprocess.run(  # noqa: S603  a fixed command on a file of our own
        [*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return ran.stdout, ran.stderr


@pytest.mark.parametrize("width", [1200, 500])
def test_the_page_opens_with_its_figures_drawn_and_without_errors(html: str, tmp_path: Path, width: int):
    dom, log = opened(html, tmp_path, width)
    assert re.search(r'data-figures="9"', dom)
    assert re.search(r'data-loaded="0"', dom)
    assert re.search(r'data-overflow="false"', dom)
    assert "CONSOLE" not in log
