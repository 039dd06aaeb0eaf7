"""A monitor's folder, opened on its model: what commands that look at a monitor begin and end with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from monitors.artifacts import ModelIdentity, load_monitor, save_monitor
from monitors.artifacts.files import MONITOR_FILE, MonitorFile, read_json
from monitors.base import Monitor
from monitors.lab.card import Card, read_card, write_card
from monitors.lab.recipes import Recipe
from monitors.lab.sections.base import Section
from monitors.lab.subject import Subject
from server.lab.sae_source import open_source
from server.lab.subject import load_subject


@dataclass(frozen=True, slots=True)
class Opened:
    """The monitor, the model that it is for, and its card (an empty one if there was none)."""

    folder: Path
    subject: Subject
    file: MonitorFile
    monitor: Monitor
    card: Card

    @classmethod
    def read(cls, folder: Path, model: str | None, max_tokens: int = 512) -> Self:
        """Load both; no model means the demo's. Raises ArtifactError, EngineError or HookPointError."""
        subject = load_subject(model, max_tokens=max_tokens)
        identity = ModelIdentity(subject.fingerprint, subject.blocks.d_model, len(subject.blocks.layers))
        monitor = load_monitor(folder, identity)
        file = read_json(folder / MONITOR_FILE, folder.parent, MonitorFile)
        card = read_card(folder) or Card(
            monitor=monitor.name, version=monitor.version, fingerprint=subject.fingerprint
        )
        return cls(folder, subject, file, monitor, card)

    def recipe(self) -> Recipe | None:
        """How it was fitted; None if that isn't known, or its features were chosen from an SAE that it doesn't refer to.

        Raises SaeError or ArtifactError.
        """
        if self.card.fit is None:
            return None
        part, reference = self.card.fit.recipe, self.file.sae
        if part.sae_sha256 is None:
            return Recipe.from_part(part)
        if reference is None or reference.sha256 != part.sae_sha256:
            return None
        encode = reference.encode or "selected"
        source = open_source(self.folder.parent / reference.path, reference.format, encode)
        return Recipe.from_part(part, source) if source.sha256 == part.sae_sha256 else None

    def write(self, monitor: Monitor, section: Section) -> None:
        """Save the monitor as it is now (its weights are the same) with one section of its card exchanged."""
        save_monitor(
            monitor,
            self.folder,
            fingerprint=self.subject.fingerprint,
            tokenizer_hash=self.file.tokenizer_hash,
            sae=self.file.sae,
        )
        write_card(self.card.with_section(section.bound_to(self.file.weights_sha256)), self.folder)
