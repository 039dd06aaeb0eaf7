"""From labelled examples to a monitor with the 'fit' section of its card."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from monitors.aggregate import AggregatorSpec
from monitors.artifacts.files import MONITOR_FILE, MonitorFile, read_json
from monitors.base import Evidence, Link, Monitor
from monitors.lab.activations import Progress, collect, no_progress
from monitors.lab.baselines import folds, random_figures, tfidf_out_of_fold
from monitors.lab.card import CARD_FILE, Card
from monitors.lab.dataset import Example, dataset_digest
from monitors.lab.pooling import Pooled
from monitors.lab.probability import fit_probability
from monitors.lab.recipes import Recipe, fit
from monitors.lab.sae.source import SaeSource
from monitors.lab.sections.base import Phase, Statistic
from monitors.lab.sections.fit import FitSection, LayerBaseline
from monitors.lab.statistics import Floats, auroc_interval
from monitors.lab.subject import Subject
from monitors.lab.sweep import best, candidate, cross_validate
from monitors.lab.trainers import KIND_SETS, TRAINERS
from monitors.lab.trainers.base import Settings
from monitors.types import HookPoint

_MOST_SATURATED = 1e-3  # of benign scores


@dataclass(frozen=True, slots=True)
class Search:
    """What is tried."""

    kinds: tuple[str, ...]  # keys of TRAINERS or KIND_SETS
    hook_points: tuple[HookPoint, ...]
    aggregators: tuple[AggregatorSpec, ...] = ()  # (): each kind's own
    penalties: tuple[float, ...] = (1.0,)
    phase: Phase | None = None  # None: response if every example has a reply
    num_folds: int = 5
    exclude_first: int = 0
    seed: int = 0
    sae: SaeSource | None = None  # for kinds that choose among features; they read where it does

    def recipes(self, phase: Phase, *, is_streamed: bool = True) -> list[Recipe]:
        """Every combination that the kinds allow. A kind that allows none of the aggregators is left out of a set.

        Raises ValueError for a kind that is unknown, or that was named and allows none.
        """
        found = []
        for kind in dict.fromkeys(k for name in self.kinds for k in KIND_SETS.get(name, (name,))):
            if kind not in TRAINERS:
                raise ValueError(f"unknown kind {kind!r}; known: {', '.join([*TRAINERS, *KIND_SETS])}")
            trainer = TRAINERS[kind]
            places = self._places(kind)
            penalised = "penalty" in trainer.settings
            choices = [{"penalty": value} for value in self.penalties] if penalised else [{}]
            found += [
                Recipe(
                    kind,
                    points,
                    phase,
                    aggregator,
                    self.exclude_first,
                    settings,
                    self.sae if trainer.needs_sae else None,
                )
                for points in places
                for settings in choices
                for aggregator in self._aggregators(kind, settings, is_streamed=is_streamed)
            ]
        if not found:
            raise ValueError(f"no kind of {', '.join(self.kinds)} can be aggregated by {self._asked}")
        return found

    def _places(self, kind: str) -> list[tuple[HookPoint, ...]]:
        """The hook points of each recipe of a kind."""
        trainer = TRAINERS[kind]
        if trainer.needs_sae:
            if self.sae is None:
                raise ValueError(f"kind {kind!r} chooses features of an SAE: give its folder with --sae")
            return [(self.sae.sae.hook_point,)]
        return [self.hook_points] if trainer.all_layers else [(point,) for point in self.hook_points]

    @property
    def _asked(self) -> str:
        return ", ".join(one.kind for one in self.aggregators)

    def _aggregators(self, kind: str, settings: Settings, *, is_streamed: bool) -> list[AggregatorSpec]:
        """What a kind is tried with. Where tokens don't come one by one, running averages are as good as one another."""
        trainer = TRAINERS[kind]
        wanted = self.aggregators or trainer.run_with
        allowed = [one for one in wanted if one.kind in trainer.aggregators]
        if self.aggregators:
            if not allowed and kind in self.kinds:
                raise ValueError(
                    f"kind {kind!r} can't be aggregated by {self._asked}; allowed: "
                    f"{', '.join(sorted(trainer.aggregators))}. Leave --aggregator out to try the kind's own"
                )
            return allowed
        own = allowed or [trainer.trained_with(settings)]
        return own if is_streamed else own[:1]


@dataclass(frozen=True, slots=True)
class Fitted:
    """The best candidate, fitted on everything, and what it was chosen by. The section's weights_sha256 is still open."""

    monitor: Monitor
    section: FitSection

    def card(self, folder: Path, fingerprint: str) -> Card:
        """A new card for the monitor that was saved to `folder`."""
        sha256 = read_json(folder / MONITOR_FILE, folder.parent, MonitorFile).weights_sha256
        section = self.section.model_copy(update={"weights_sha256": sha256})
        return Card(
            monitor=self.monitor.name, version=self.monitor.version, fingerprint=fingerprint, fit=section
        )


def fit_monitor(
    name: str,
    subject: Subject,
    examples: Sequence[Example],
    search: Search,
    cache: Path,
    *,
    reading: Progress = no_progress,
    fitting: Progress = no_progress,
) -> Fitted:
    """Search, then refit the best on all examples.

    Candidates are compared by the largest running score of a request; on an encoder, which sees all of the text from the
    first token on and is never streamed, by the last. Raises ValueError for data that can't be learned from.
    """
    check_labels(examples)
    phase = search.phase or phase_of(examples)
    recipes = search.recipes(phase, is_streamed=subject.is_causal)
    points = tuple(dict.fromkeys(point for recipe in recipes for point in recipe.hook_points))
    pooled = Pooled(collect(subject, examples, points, cache, progress=reading))
    labels, groups = pooled.acts.labels, pooled.acts.groups
    fold = folds(labels, groups, search.num_folds, search.seed)
    statistic: Statistic = "max" if subject.is_causal else "last"
    judged = cross_validate(
        recipes, pooled, labels, fold, statistic=statistic, seed=search.seed, resume=True, progress=fitting
    )
    candidates = [candidate(one, labels, groups, search.seed) for one in judged]
    chosen = best(candidates)
    recipe = recipes[chosen]
    words = auroc_interval(labels, tfidf_out_of_fold(examples, labels, fold), groups, search.seed)
    random = tuple(
        LayerBaseline(
            hook_point=str(point),
            random=random_figures(
                pooled,
                labels,
                point,
                phase,
                recipe.aggregator,
                exclude_first=search.exclude_first,
                statistic=statistic,
                seed=search.seed,
            ),
        )
        for point in points
    )
    monitor = fit(recipe, pooled, range(len(labels)), labels, name=name, seed=search.seed)
    fitted_link = monitor.link
    if is_saturated(judged[chosen].scores[labels == 0]):
        monitor = replace(monitor, link=Link.IDENTITY)
    evidence = Evidence(
        auroc=round(candidates[chosen].auroc.value, 4), baseline_auroc=round(words.value, 4), card=CARD_FILE
    )
    section = FitSection(
        weights_sha256="",
        data_sha256=dataset_digest(examples),
        num_examples=len(examples),
        seed=search.seed,
        statistic=statistic,
        num_positive=int(labels.sum()),
        num_groups=len(np.unique(groups)),
        num_folds=search.num_folds,
        num_repeated=num_repeated(examples),
        recipe=recipe.to_part(),
        candidates=tuple(candidates),
        tfidf_auroc=words,
        random=random,
        probability=fit_probability(judged[chosen].scores, labels, groups, fitted_link, search.seed),
    )
    return Fitted(replace(monitor, evidence=evidence), section)


def is_saturated(benign: Floats) -> bool:
    """Whether a sigmoid leaves too little room: more than one in a thousand benign scores are 1 in single precision.

    No threshold could then be set for a low false-positive rate, where it matters; logits as they are have all the room.
    """
    return bool((benign.astype(np.float32) >= 1.0).mean() > _MOST_SATURATED)


def check_labels(examples: Sequence[Example]) -> None:
    """Raise ValueError unless all are labelled and both classes are there."""
    unknown = sum(example.label is None for example in examples)
    if unknown:
        raise ValueError(f"{unknown} of {len(examples)} examples have no label; label them or leave them out")
    positive = sum(example.label == 1 for example in examples)
    if not 0 < positive < len(examples):
        missing = "positive" if not positive else "negative"
        raise ValueError(
            f"none of {len(examples)} examples is {missing}; a label is positive if it is one of --positive (default: 1, true)"
        )


def phase_of(examples: Sequence[Example]) -> Phase:
    """The response if every example has one, else the prompt."""
    return "response" if all(example.reply for example in examples) else "prompt"


def num_repeated(examples: Sequence[Example]) -> int:
    """How many examples have a text (spaces and case aside) that another group has too: a split may have it on both sides."""
    groups: dict[str, set[str]] = {}
    texts = [" ".join(example.plain_text.lower().split()) for example in examples]
    for text, example in zip(texts, examples, strict=True):
        groups.setdefault(text, set()).add(example.group)
    return sum(len(groups[text]) > 1 for text in texts)


def doubts(section: FitSection) -> list[str]:
    """What speaks against the monitor already, as sentences: words or chance do as well, or repeats flatter it."""
    found = []
    chosen = next(c for c in section.candidates if c.recipe == section.recipe)
    words = section.tfidf_auroc.value
    if chosen.auroc.low <= words:
        found.append(
            f"TF-IDF on the words has AUROC {words:.3f}, which is within the monitor's interval or above it: "
            "the monitor may have learned words only; give data in which both classes use the same words"
        )
    random = [r.random for r in section.random if r.hook_point == section.recipe.hook_points[-1]]
    if random and chosen.auroc.value <= random[0].best_auroc:
        found.append(
            f"the best of {random[0].num_directions} random directions has AUROC {random[0].best_auroc:.3f}: "
            "the monitor has learned no more than chance finds; give more data, or try other layers and kinds"
        )
    if section.num_repeated:
        found.append(
            f"{section.num_repeated} examples have the same text as one of another group, so that both sides of a split may "
            "have seen it; drop repeats, or give them one group"
        )
    return found
