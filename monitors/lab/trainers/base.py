"""What a trainer is given, and what it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from monitors.aggregate import ELEMENTWISE, AggregatorSpec
from monitors.base import Link, Transform
from monitors.lab.pooling import Pooled
from monitors.lab.sae.source import SaeSource
from monitors.lab.sections.base import Phase
from monitors.lab.statistics import Ints
from monitors.types import HookPoint

Settings = Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Labelled examples at hook points. labels[k] belongs to indices[k]."""

    pooled: Pooled
    indices: tuple[int, ...]
    labels: Ints
    hook_points: tuple[HookPoint, ...]
    phase: Phase
    exclude_first: int
    seed: int
    sae: SaeSource | None = None  # for trainers that choose among features


@dataclass(frozen=True, slots=True)
class Trainer:
    """One way to fit a transform."""

    train: Callable[[Task, Settings], Transform]
    settings: Settings  # with their defaults
    trained_with: Callable[[Settings], AggregatorSpec]  # how scores were aggregated while fitting
    all_layers: bool = False  # reads every hook point at once, so that there is no layer to choose
    aggregators: frozenset[str] = ELEMENTWISE  # which its kind allows at run time
    run_with: tuple[AggregatorSpec, ...] = (AggregatorSpec("mean"), AggregatorSpec("ema", alpha=0.12))
    """What is tried at run time unless others are asked for: those of them that its kind allows, or what it was trained with."""
    needs_sae: bool = False  # reads where the SAE does, so that there is no layer to choose
    needs_reference: bool = False  # conversations that go on after their first user message
    link: Link = Link.SIGMOID  # identity where the score is no log-odds
