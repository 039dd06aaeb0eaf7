"""Thresholds from benign requests: by false-positive budget, at the unit of decision, with a confidence bound.

The unit is the request, and the statistic is what the server compares: the largest running score over a phase's tokens,
rounded to float32 as scores are before they are decided on. A certified threshold is exceeded by at most `fpr` of benign
requests like these, with the calibration's confidence (order statistics; science, section 5.1).

That bound is of independent requests. Those of one group (a template, a conversation) may score alike, so one of each
group counts, drawn by chance: if the groups are drawn independently, so are these.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from monitors.base import Calibration, Link, Monitor, Reference, RowNorm, Threshold
from monitors.lab.activations import SHARD, Activations
from monitors.lab.dataset import Example, dataset_digest
from monitors.lab.scoring import Scorer
from monitors.lab.sections.base import Interval, Phase
from monitors.lab.sections.calibration import (
    Budget,
    CalibrationSection,
    LengthStratum,
    PhaseCalibration,
    ThresholdPhase,
    Unit,
)
from monitors.lab.statistics import Floats, certified_rank, clopper_pearson, num_needed, one_of_each

BUDGETS = (0.05, 0.01, 0.001)
_MARGIN = 1e-5  # relative: scores of the same request differ by less between batches
_BINS = 20  # of the reference that drift is told against
_QUANTILES = 100
_MIN_PER_LENGTH = 30


@dataclass(frozen=True, slots=True)
class Maxima:
    """The largest running score in one phase of each request that counts, float32 values, and its number of tokens."""

    phase: ThresholdPhase
    scores: Floats  # [n]
    num_tokens: Floats  # [n]
    drawn_from: int | None  # benign requests, one of each group of which counts; None: all of them count


@dataclass(frozen=True, slots=True)
class Checked:
    """How often fresh benign requests exceed a threshold."""

    threshold: Threshold
    rate: Interval

    @property
    def holds(self) -> bool:
        """Whether the rate is compatible with the budget: its interval does not lie above."""
        return self.rate.low <= self.threshold.fpr


def benign(examples: Sequence[Example], *, unlabelled_is_benign: bool = False) -> tuple[Example, ...]:
    """Those that count as benign traffic. Raises ValueError if there are none."""
    found = tuple(e for e in examples if e.label == 0 or (e.label is None and unlabelled_is_benign))
    if not found:
        raise ValueError(
            f"none of {len(examples)} examples is labelled benign (0); if all of them are, say --unlabelled-is-benign"
        )
    return found


def num_seen(fresh: Sequence[Example], seen: Sequence[Example]) -> int:
    """How many fresh examples are also among those that the thresholds were found on. Some are in any traffic.

    Raises ValueError if all are: they would show nothing.
    """
    known = {e.content for e in seen}
    repeated = sum(e.content in known for e in fresh)
    if fresh and repeated == len(fresh):
        raise ValueError(
            f"all {repeated} fresh examples are also among those to calibrate on; give others to check with"
        )
    return repeated


def maxima(monitor: Monitor, acts: Activations, *, unit: Unit = "group", seed: int = 0) -> tuple[Maxima, ...]:
    """By phase; response and conversation (anywhere in the two) of those examples that have a reply.

    Raises ValueError where the monitor fails or reads nothing.
    """
    scorer = Scorer([monitor])
    every = np.arange(len(acts.examples))
    replied = np.flatnonzero([tokens.num_reply > 0 for tokens in acts.tokens])
    prompts = _scores(scorer, acts, "prompt", every)
    prompt_tokens, reply_tokens = np.array([[t.num_prompt, t.num_reply] for t in acts.tokens], dtype=float).T

    def counted(phase: ThresholdPhase, rows: NDArray[np.intp], scores: Floats, num_tokens: Floats) -> Maxima:
        if unit == "request":
            return Maxima(phase, scores, num_tokens, drawn_from=None)
        drawn = one_of_each(acts.groups[rows], seed)
        drawn_from = len(rows) if len(drawn) < len(rows) else None
        return Maxima(phase, scores[drawn], num_tokens[drawn], drawn_from)

    found = [counted("prompt", every, prompts, prompt_tokens)]
    if len(replied):
        responses = _scores(scorer, acts, "response", replied)
        either = np.maximum(prompts[replied], responses)
        found.append(counted("response", replied, responses, reply_tokens[replied]))
        found.append(counted("conversation", replied, either, (prompt_tokens + reply_tokens)[replied]))
    return tuple(found)


def threshold_for(
    scores: Floats, fpr: float, confidence: float, link: Link = Link.IDENTITY
) -> tuple[float, int]:
    """The threshold and its rank among the benign scores; rank 0: too few to certify, so it lies above all of them.

    It stands a little above its order statistic, so that a request which scores just that (many may: ties, a score that
    saturates) does not exceed it by rounding; but not above the next larger score, nor at a sigmoid's end.
    """
    ordered = np.sort(scores)[::-1]
    rank = certified_rank(len(ordered), fpr, confidence)
    value = float(ordered[max(rank, 1) - 1])
    raised = value + _MARGIN * (1 + abs(value))
    larger = ordered[ordered > value]
    if rank and len(larger):
        raised = min(raised, (value + float(larger[-1])) / 2)
    if link is Link.SIGMOID:
        raised = min(raised, (value + 1.0) / 2)
    return raised, rank


def calibrate(
    monitor: Monitor,
    acts: Activations,
    *,
    budgets: Iterable[float] = BUDGETS,
    confidence: float = 0.95,
    unit: Unit = "group",
    seed: int = 0,
) -> tuple[Monitor, CalibrationSection]:
    """The monitor with its calibration, and the card's section (its hash is still open).

    Phases that these examples don't cover stay as they were calibrated before. Response and conversation are covered where
    all examples have a reply, or enough of them to certify the loosest budget. All examples must be benign. Raises
    ValueError for a budget that is none, an example that can't be scored, or another confidence than that of what stays.
    """
    budgets = sorted(set(budgets), reverse=True)
    num_enough = num_needed(budgets[0], confidence)
    every = maxima(monitor, acts, unit=unit, seed=seed)
    has_all_replies = all(tokens.num_reply for tokens in acts.tokens)
    found = [m for m in every if m.phase == "prompt" or has_all_replies or len(m.scores) >= num_enough]
    thresholds = [
        Threshold(m.phase, fpr, value, certified=rank > 0, num_requests=len(m.scores))
        for m in found
        for fpr in budgets
        for value, rank in [threshold_for(m.scores, fpr, confidence, monitor.link)]
    ]
    references = [
        Reference(m.phase, len(m.scores), _quantiles(m.scores, _BINS))
        for m in found
        if m.phase != "conversation"
    ]
    kept_thresholds, kept_references = _kept(monitor.calibration, {m.phase for m in found}, confidence)
    calibration = Calibration(
        num_requests=len(found[0].scores),
        confidence=confidence,
        thresholds=(*thresholds, *kept_thresholds),
        data_sha256=dataset_digest(acts.examples),
        references=(*references, *kept_references),
        row_norms=_row_norms(monitor, acts),
    )
    sections = [_of_phase(m, calibration, monitor.link, seed) for m in found]
    main = sections[min(1, len(sections) - 1)]  # the response, if there is one
    section = CalibrationSection(**dict(main), others=tuple(other for other in sections if other is not main))
    return replace(monitor, calibration=calibration), section


def check(monitor: Monitor, acts: Activations, *, unit: Unit = "group", seed: int = 0) -> tuple[Checked, ...]:
    """Every threshold on fresh benign requests. Raises ValueError for a monitor that is not calibrated."""
    if monitor.calibration is None:
        raise ValueError(f"monitor {monitor.name!r} is not calibrated")
    scores = {m.phase: m.scores for m in maxima(monitor, acts, unit=unit, seed=seed)}
    return tuple(
        Checked(t, clopper_pearson(int((scores[t.phase] > t.value).sum()), len(scores[t.phase])))
        for t in monitor.calibration.thresholds
        if t.phase in scores
    )


def _scores(scorer: Scorer, acts: Activations, phase: Phase, rows: NDArray[np.intp]) -> Floats:
    found: Floats = scorer.maxima(acts, phase)[rows, 0].astype(np.float32).astype(np.float64)
    for row, score in zip(rows, found, strict=True):
        if not np.isfinite(score):
            told = "its score is not finite" if np.isnan(score) else f"no token of its {phase} is in scope"
            raise ValueError(f"example {acts.examples[row].id!r}: {told}; leave it out, or mend the monitor")
    return found


def _kept(
    before: Calibration | None, covered: set[ThresholdPhase], confidence: float
) -> tuple[list[Threshold], list[Reference]]:
    """What a calibration before says of other phases."""
    if before is None:
        return [], []
    thresholds = [
        replace(t, num_requests=before.num_requests_of(t))
        for t in before.thresholds
        if t.phase not in covered
    ]
    if thresholds and before.confidence != confidence:
        phases = " and ".join(dict.fromkeys(t.phase for t in thresholds))
        raise ValueError(
            f"its {phases} was calibrated with confidence {before.confidence:g}, not {confidence:g}: "
            f"give --confidence {before.confidence:g}, or benign examples with replies, which calibrate all anew"
        )
    return thresholds, [r for r in before.references if r.phase not in covered]


def _of_phase(found: Maxima, calibration: Calibration, link: Link, seed: int) -> PhaseCalibration:
    own = [t for t in calibration.thresholds if t.phase == found.phase]
    return PhaseCalibration(
        weights_sha256="",
        data_sha256=calibration.data_sha256,
        num_examples=len(found.scores),
        drawn_from=found.drawn_from,
        seed=seed,
        phase=found.phase,
        confidence=calibration.confidence,
        budgets=tuple(
            Budget(
                fpr=t.fpr,
                threshold=t.value,
                certified=t.certified,
                rank=threshold_for(found.scores, t.fpr, calibration.confidence, link)[1],
                num_needed=num_needed(t.fpr, calibration.confidence),
            )
            for t in own
        ),
        by_length=tuple(stratum for t in own for stratum in _by_length(found, t)),
        quantiles=_quantiles(found.scores, _QUANTILES),
    )


def _by_length(found: Maxima, threshold: Threshold) -> list[LengthStratum]:
    """The rate in up to ten strata of like length, each of 30 requests or more."""
    num = max(1, min(10, len(found.scores) // _MIN_PER_LENGTH))
    edges = np.unique(np.quantile(found.num_tokens, np.linspace(0, 1, num + 1), method="nearest"))
    strata = []
    for low, high in zip(
        edges[:-1] if len(edges) > 1 else edges, edges[1:] if len(edges) > 1 else edges, strict=True
    ):
        is_first = low == edges[0]
        inside = (found.num_tokens >= low if is_first else found.num_tokens > low) & (
            found.num_tokens <= high
        )
        exceeding = int((found.scores[inside] > threshold.value).sum())
        strata.append(
            LengthStratum(
                budget=threshold.fpr,
                min_tokens=int(low if is_first else low + 1),
                max_tokens=int(high),
                num_requests=int(inside.sum()),
                fpr=clopper_pearson(exceeding, int(inside.sum())),
            )
        )
    return strata


def _quantiles(scores: Floats, num: int) -> tuple[float, ...]:
    return tuple(np.quantile(scores, np.linspace(0, 1, num + 1)).tolist())


def _row_norms(monitor: Monitor, acts: Activations) -> tuple[RowNorm, ...]:
    """log ||x|| over all tokens at each hook point, as the server samples it."""
    found = []
    for point in monitor.hook_points:
        logs = []
        for first in range(0, len(acts.examples), SHARD):
            rows = torch.cat(acts.batch(point, range(first, min(first + SHARD, len(acts.examples)))))
            logs.append(torch.linalg.vector_norm(rows, dim=1).double().log())
        every = torch.cat(logs)
        found.append(RowNorm(str(point), float(every.mean()), float(every.std(correction=0))))
    return tuple(found)
