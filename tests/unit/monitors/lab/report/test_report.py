"""The report of a monitor: what it says, and that it is one inert file."""

import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from monitors.artifacts import ArtifactError, save_monitor
from monitors.base import Monitor
from monitors.lab.card import CARD_FILE, Card, read_card, write_card
from monitors.lab.report import Reported, render
from monitors.lab.report.heat import HeatExample, HeatToken
from monitors.types import CausalVerdict
from server.lab.report import phase_shown
from tests.unit.monitors.lab.report import cards

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
SECTIONS = ("use", "fit", "eval", "calibration", "causal", "tokens", "provenance")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cards.write(tmp_path / "harm")
    return tmp_path / "harm"


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a monitor with a full card."""
    folder = tmp_path_factory.mktemp("full") / "harm"
    cards.write(folder)
    return page(folder)


def page(folder: Path, **rest: object) -> str:
    return render(Reported.read(folder, **rest), NOW)


def test_a_full_card_shows_every_section_and_figure(html: str):
    assert all(f'<h2 id="{name}">' in html for name in SECTIONS)
    assert html.count("<svg") == 9
    assert "Not run:" not in html


def test_every_figure_that_shows_the_monitor_shows_its_baselines(html: str):
    figures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    separating = [f for f in figures if re.search('aria-label="(AUROC|ROC)', f)]
    assert len(separating) == 5  # sweep, ROC, by data set, left out, read-out
    for figure in separating:
        assert all(f"var(--{ink})" in figure for ink in ("monitor", "tfidf", "random"))


def test_figures_take_their_colours_from_the_page(html: str):
    svg = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert not re.search(r"(fill|stroke): #(?!000000|ffffff)", svg)


def test_the_page_loads_nothing(html: str):
    assert "<script" not in html
    assert not re.search(r'(src|href)="(?!#)[^"]*:', html)
    assert "url(http" not in html
    assert "default-src 'none'" in html


def test_the_causal_part_tells_of_later_layers_other_places_and_other_concepts(html: str):
    assert "removal takes" in html
    assert "<td>0.660</td>" in html  # fitted anew
    assert "one random token alone" in html
    assert "unrelated: &lt;b&gt;spam" in html
    assert "0.12 times as far" in html
    assert "found at 1 % false positives" in html
    assert "AUROC in other words" in html


def test_what_was_not_run_is_named_with_its_command(folder: Path):
    card = read_card(folder)
    assert card is not None
    write_card(card.model_copy(update={"causal": None, "calibration": None}), folder)
    html = page(folder)
    assert f"interlock monitor verify {folder}" in html
    assert f"interlock monitor calibrate {folder}" in html
    assert "<h2 id=" in html


def test_a_monitor_without_a_card_still_has_a_page(folder: Path):
    (folder / CARD_FILE).unlink()
    assert page(folder).count("Not run:") == 4


def test_findings_on_other_weights_are_called_stale(folder: Path):
    card = read_card(folder)
    assert card is not None
    assert card.fit is not None
    old = card.fit.model_copy(update={"weights_sha256": "0" * 64})
    write_card(card.model_copy(update={"fit": old}), folder)
    assert {step.name: step.state for step in Reported.read(folder).steps}["fit"] == "stale"
    assert "stale (other weights)" in page(folder)


@pytest.mark.parametrize(
    ("verdict", "allowed"),
    [
        (CausalVerdict.INVALID, {"log and annotate"}),
        (CausalVerdict.READOUT, {"log and annotate", "block"}),
        (CausalVerdict.CAUSAL, {"log and annotate", "block", "steer along its direction"}),
    ],
)
def test_the_verdict_decides_what_it_may_be_used_for(
    tmp_path: Path, verdict: CausalVerdict, allowed: set[str]
):
    cards.write(tmp_path / "m", verdict=verdict)
    assert {use.action for use in Reported.read(tmp_path / "m").uses if use.allowed} == allowed


def test_a_monitor_without_calibration_may_not_block(tmp_path: Path):
    transform = cards.Linear((cards.HookPoint(0),), cards.torch.ones(1, 4), cards.torch.zeros(1))
    save_monitor(Monitor("plain", transform), tmp_path / "plain", fingerprint="f" * 64)
    uses = {use.action: use for use in Reported.read(tmp_path / "plain").uses}
    assert not uses["block"].allowed
    assert "not calibrated" in uses["block"].why


def test_text_from_data_is_inert(tmp_path: Path):
    evil = "<script>alert(1)</script>"
    cards.write(tmp_path / "m", dataset=evil)
    example = HeatExample(evil, "caught", 3.0, (HeatToken(f'{evil}" onmouseover="x', 3.0, 1.0),))
    html = page(tmp_path / "m", examples=(example,), threshold=2.3)
    assert "<script" not in html
    assert 'onmouseover="x' not in html
    assert html.count("&lt;script&gt;") >= 4


def test_tokens_above_the_threshold_are_marked_and_those_out_of_scope_too(folder: Path):
    tokens = (HeatToken("a", None, 0.0), HeatToken("b", 1.0, 0.2), HeatToken("c", 2.5, 1.0))
    html = page(folder, examples=(HeatExample("row:1", "caught", 2.5, tokens),), threshold=2.3)
    assert re.search('class="out" title="out of scope"[^>]*>a<', html)
    assert re.search('<span title="1" [^>]*>b<', html)
    assert re.search('class="over" title="2.5" [^>]*>c<', html)


def test_the_same_card_gives_the_same_page(folder: Path):
    assert page(folder) == page(folder)


def test_a_folder_that_holds_no_monitor_is_refused(tmp_path: Path):
    with pytest.raises(ArtifactError, match=r"monitor\.json"):
        Reported.read(tmp_path)


def test_roc_points_of_the_sample_card_rise():
    roc = np.array(cards.figures(2.0, 1).roc)
    assert (np.diff(roc, axis=0) >= 0).all()


def test_examples_are_shown_in_the_phase_that_the_monitor_is_for():
    fitted = cards.fit("0" * 64)
    for_replies = fitted.model_copy(update={"recipe": fitted.recipe.model_copy(update={"phase": "response"})})
    card = Card(monitor="m", fingerprint="f", fit=for_replies, calibration=cards.calibration("0" * 64))
    assert phase_shown(card) == "response"
    assert phase_shown(card.model_copy(update={"fit": None})) == "prompt"  # as calibrated
