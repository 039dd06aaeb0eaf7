"""What a report says in words: what the monitor may be used for, why, and what is missing."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from monitors.artifacts.files import MONITOR_FILE, MonitorFile, read_json
from monitors.lab.card import Card, read_card
from monitors.lab.report.heat import HeatExample
from monitors.types import CausalVerdict

_READS = {
    CausalVerdict.INVALID: "the causal card found that it does not read the concept",
    CausalVerdict.READOUT: "it reads the concept; nothing shows that writing it moves behaviour",
    CausalVerdict.WRITE_HANDLE: "writing its direction is sufficient for the behaviour",
    CausalVerdict.NECESSARY: "removing its direction removes the behaviour",
    CausalVerdict.CAUSAL: "its direction is necessary and sufficient for the behaviour",
}
_STEERS = {CausalVerdict.WRITE_HANDLE, CausalVerdict.NECESSARY, CausalVerdict.CAUSAL}


@dataclass(frozen=True, slots=True)
class Use:
    """One thing that a policy may do on this monitor's scores."""

    action: str
    allowed: bool
    why: str


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the lab: whether its findings are there and belong to these weights."""

    name: str
    state: str  # done | missing | stale
    command: str  # that makes it


@dataclass(frozen=True, slots=True)
class Reported:
    """A monitor and its card, as a report shows them."""

    folder: Path
    monitor: MonitorFile
    card: Card
    examples: tuple[HeatExample, ...] = ()
    threshold: float | None = None  # that the examples were chosen around
    steps: tuple[Step, ...] = field(init=False)
    uses: tuple[Use, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(_steps(self.folder, self.monitor, self.card)))
        object.__setattr__(self, "uses", tuple(_uses(self.monitor, self.card)))

    @classmethod
    def read(
        cls, folder: Path, examples: tuple[HeatExample, ...] = (), threshold: float | None = None
    ) -> "Reported":
        """From the monitor's folder; needs no model. Raises ArtifactError."""
        monitor = read_json(folder / MONITOR_FILE, folder.parent, MonitorFile)
        card = read_card(folder) or Card(
            monitor=monitor.name, version=monitor.version, fingerprint=monitor.model.fingerprint
        )
        return cls(folder, monitor, card, examples, threshold)

    @property
    def headline(self) -> str:
        """One sentence."""
        allowed = [use.action for use in self.uses if use.allowed]
        return f"May {_listed(allowed)}." if allowed else "May not be used."


def _steps(folder: Path, monitor: MonitorFile, card: Card) -> Iterator[Step]:
    sections = {
        "fit": (card.fit, f"interlock monitor fit --data train.jsonl --name {monitor.name} --out {folder}"),
        "eval": (card.evaluation, f"interlock monitor eval {folder} --data test.jsonl"),
        "calibrate": (card.calibration, f"interlock monitor calibrate {folder} --data benign.jsonl"),
        "verify": (card.causal, f"interlock monitor verify {folder} --data test.jsonl"),
    }
    for name, (section, command) in sections.items():
        if section is None:
            yield Step(name, "missing", command)
        elif section.weights_sha256 != monitor.weights_sha256:
            yield Step(name, "stale", command)
        else:
            yield Step(name, "done", command)


def _uses(monitor: MonitorFile, card: Card) -> Iterator[Use]:
    evidence, calibration = monitor.evidence, monitor.calibration
    verdict = evidence.verdict if evidence else None
    yield Use("log and annotate", allowed=True, why="any monitor may")
    certified = [t for t in calibration.thresholds if t.certified] if calibration else []
    if verdict is CausalVerdict.INVALID:
        yield Use("block", allowed=False, why=_READS[verdict])
    elif evidence is not None and evidence.accepted is False:
        yield Use("block", allowed=False, why="its SAE failed the acceptance test on plain text")
    elif certified:
        budgets = ", ".join(f"{t.fpr:.2%} of {t.phase}s" for t in certified)
        yield Use("block", allowed=True, why=f"false positives are certified at {budgets}")
    else:
        told = "its calibration certifies no budget" if calibration else "it is not calibrated"
        yield Use("block", allowed=False, why=told)
    if verdict is None:
        yield Use("steer along its direction", allowed=False, why="its causal effect was not tested")
    else:
        yield Use("steer along its direction", allowed=verdict in _STEERS, why=_READS[verdict])


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
