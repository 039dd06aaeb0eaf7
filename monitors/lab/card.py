"""card.json: all that is known about a monitor, one section per step of the lab."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from monitors.artifacts.files import ArtifactError
from monitors.lab.sections.base import CardPart, Section
from monitors.lab.sections.calibration import CalibrationSection
from monitors.lab.sections.causal import CausalSection
from monitors.lab.sections.evaluation import EvaluationSection
from monitors.lab.sections.fit import FitSection

CARD_FILE, REPORT_FILE = "card.json", "card.html"


class Card(CardPart):
    """The whole card. A section is None until its step was run."""

    schema_: Literal["interlock.card/v1"] = Field(default="interlock.card/v1", alias="schema")
    monitor: str
    version: str = "0"
    fingerprint: str  # of the model
    fit: FitSection | None = None
    evaluation: EvaluationSection | None = None
    calibration: CalibrationSection | None = None
    causal: CausalSection | None = None

    def with_section(self, section: Section) -> "Card":
        """This card with one section exchanged; sections about other weights are dropped."""
        names = {
            FitSection: "fit",
            EvaluationSection: "evaluation",
            CalibrationSection: "calibration",
            CausalSection: "causal",
        }
        kept = {name: getattr(self, name) for name in names.values()}
        current = {
            name: s if s is not None and s.weights_sha256 == section.weights_sha256 else None
            for name, s in kept.items()
        }
        return self.model_copy(update={**current, names[type(section)]: section})


def read_card(folder: Path) -> Card | None:
    """The card beside a monitor.json, or None. Raises ArtifactError for one that can't be read."""
    path = folder / CARD_FILE
    if not path.exists():
        return None
    try:
        return Card.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ArtifactError(
            f"{path}: not a card of this version ({error.error_count()} problems, first: {error.errors()[0]['msg']}); "
            "run the lab's steps again"
        ) from error


def write_card(card: Card, folder: Path) -> None:
    """Write card.json, by a rename."""
    path = folder / CARD_FILE
    unfinished = path.with_suffix(".part")
    unfinished.write_text(card.model_dump_json(by_alias=True, indent=2) + "\n", encoding="utf-8")
    unfinished.rename(path)
