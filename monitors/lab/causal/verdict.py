"""From measures to a verdict, with its reasons in sentences."""

from collections.abc import Sequence
from dataclasses import dataclass

from monitors.lab.sections.base import Interval
from monitors.lab.sections.causal import (
    Downstream,
    Effect,
    Faithfulness,
    PositionEffect,
    Read,
    SiteEffect,
    Specificity,
    Unrelated,
)
from monitors.types import CausalVerdict

MIN_EFFECT = 0.1  # of the difference between the classes; less is no effect worth a name
MAX_MEAN_KL, MAX_P95_KL, MAX_PERPLEXITY_RATIO, MIN_AGREEMENT = 0.1, 1.0, 1.05, 0.98
MAX_ANTI_STEERABLE = 0.25
MAX_MOVED = 0.5  # of an unrelated monitor, as a multiple of the own one's move
_MAX_PATCH_RATIO, _MIN_ON_DISTRIBUTION, _MAX_NORM_RATIO = 1.2, 0.9, 1.1
_MIN_GRADIENT_AGREEMENT = 0.8
_MIN_LATER_AUROC = 0.7  # of a probe, to say anything of the edits
_MAX_DROP = 0.1  # of AUROC, with words masked or replaced
_MIN_PERCENTILE = 0.95  # of shams and of random directions that must be beaten


@dataclass(frozen=True, slots=True)
class Measured:
    """All that was found once behaviour was measured."""

    difference: Interval  # B(D+) - B(D-)
    necessity: tuple[Effect, ...] = ()
    sufficiency: tuple[Effect, ...] = ()
    specificity: Specificity | None = None
    faithfulness: Faithfulness | None = None
    sites: tuple[SiteEffect, ...] = ()
    positions: tuple[PositionEffect, ...] = ()
    downstream: tuple[Downstream, ...] = ()
    unrelated: tuple[Unrelated, ...] = ()
    anti_steerable: float | None = None
    num_prompts: int = 0  # that were intervened on


@dataclass(frozen=True, slots=True)
class Judgement:
    verdict: CausalVerdict
    flags: tuple[str, ...]
    reasons: tuple[str, ...]


def judge(read: Read, measured: Measured | None) -> Judgement:
    """`measured` is None if no behaviour was given: then at most `readout`, which says nothing about cause."""
    valid, reasons = _reads(read)
    flags = _reading_flags(read)
    if measured is None:
        reasons.append("Behaviour was not measured, so nothing is known about cause: not tested.")
        return Judgement(
            CausalVerdict.READOUT if valid else CausalVerdict.INVALID, tuple(flags), tuple(reasons)
        )
    if not _excludes_zero(measured.difference):
        d = measured.difference
        reasons.append(
            f"Behaviour does not differ between the classes ({d.value:.2f}, {d.low:.2f} to {d.high:.2f}), so there is no "
            "effect to explain: the causal part was not tested."
        )
        return Judgement(
            CausalVerdict.READOUT if valid else CausalVerdict.INVALID, tuple(flags), tuple(reasons)
        )
    removes = _works("Removing it from positives", "necessary", measured.necessity, reasons)
    writes = _works("Writing it into negatives", "sufficient", measured.sufficiency, reasons)
    specific = _is_specific(measured.specificity, reasons)
    specific = _spares_others(measured.unrelated, reasons) and specific
    flags += [] if specific else ["entangled"]
    if removes or writes:
        flags += ["illusion-risk"] if _is_illusory(measured, reasons, removes=removes, writes=writes) else []
        flags += _place_flags(measured, reasons)
    _tell_of_what_remains(measured.downstream, reasons)
    if not valid:
        return Judgement(CausalVerdict.INVALID, tuple(flags), tuple(reasons))
    if (removes or writes) and not specific:
        reasons.append("It moves behaviour, but not only behaviour: it may not steer.")
        return Judgement(CausalVerdict.READOUT, tuple(flags), tuple(reasons))
    match removes, writes:
        case True, True:
            verdict = CausalVerdict.CAUSAL
        case True, False:
            verdict = CausalVerdict.NECESSARY
        case False, True:
            verdict = CausalVerdict.WRITE_HANDLE
        case _:
            verdict = CausalVerdict.READOUT
    return Judgement(verdict, tuple(flags), tuple(reasons))


def _reads(read: Read) -> tuple[bool, list[str]]:
    """Better than chance, than its own recipe on permuted labels, and no worse than words or length."""
    own, bar = read.auroc, max(max(a, 1 - a) for a in read.sham_aurocs)
    surface, name = max((read.tfidf_auroc, "TF-IDF"), (read.length_auroc, "length"))
    said = f"AUROC {own.value:.3f} ({own.low:.3f} to {own.high:.3f})"
    if own.low <= 0.5:  # noqa: PLR2004
        return False, [f"It does not read the concept: {said} does not exclude chance."]
    if read.sham_percentile < _MIN_PERCENTILE:
        return False, [
            f"It reads no better than its own recipe on permuted labels: {said}, the best of those {bar:.3f}."
        ]
    if read.random_percentile < _MIN_PERCENTILE:
        return False, [
            f"It reads no better than random directions: {said}, the best of those {read.random.best_auroc:.3f}."
        ]
    if own.high < surface:
        return False, [f"{name} alone reads the concept better: {surface:.3f} against {said}."]
    reasons = [f"It reads the concept: {said}, shams up to {bar:.3f}, {name} {surface:.3f}."]
    if own.low <= surface:
        reasons.append(
            f"{name} alone reads the concept as well on these examples: they can't tell the two apart."
        )
    return True, reasons


def _works(what: str, adjective: str, effects: Sequence[Effect], reasons: list[str]) -> bool:
    """Under every matching of the nulls."""
    works = bool(effects)
    for found in effects:
        e = found.effect
        fair = found.num_unmatched <= found.num_nulls / 2
        passes = fair and e.low > 0 and e.value >= MIN_EFFECT and e.value > found.null_high
        works = works and passes
        weaker = f", {found.num_unmatched} of them weaker than that" if found.num_unmatched else ""
        reasons.append(
            f"{what} moves behaviour by {e.value:.2f} ({e.low:.2f} to {e.high:.2f}) of the difference between the classes; "
            f"{found.num_nulls} null edits of equal {'size' if found.matched_by == 'norm' else 'KL'}{weaker} do "
            f"{found.null_low:.2f} to {found.null_high:.2f} (p = {found.p_value:.3f}): {'' if passes else 'not '}{adjective}."
        )
    return works


def _is_specific(specificity: Specificity | None, reasons: list[str]) -> bool:
    if specificity is None:
        return True
    s = specificity
    beyond = [
        text
        for text, bad in (
            (f"mean KL {s.mean_kl:.3f} (limit {MAX_MEAN_KL})", s.mean_kl > MAX_MEAN_KL),
            (f"95th percentile of KL {s.p95_kl:.2f} (limit {MAX_P95_KL:g})", s.p95_kl > MAX_P95_KL),
            (
                f"perplexity times {s.perplexity_ratio:.3f} (limit {MAX_PERPLEXITY_RATIO})",
                s.perplexity_ratio > MAX_PERPLEXITY_RATIO,
            ),
            (
                f"likeliest token kept {s.top1_agreement:.1%} (limit {MIN_AGREEMENT:.0%})",
                s.top1_agreement < MIN_AGREEMENT,
            ),
        )
        if bad
    ]
    if beyond:
        reasons.append(f"On neutral text the edit is not specific: {'; '.join(beyond)}.")
    change = s.safety_change
    if change is not None and change.high < 0:
        beyond.append("safety")
        reasons.append(
            f"Refusal of harmful prompts falls by {-change.value:.2f} in log-odds ({-change.high:.2f} to {-change.low:.2f})."
        )
    return not beyond


def _spares_others(unrelated: Sequence[Unrelated], reasons: list[str]) -> bool:
    """Monitors of other concepts stand still, next to the own one."""
    moved = [(one.monitor, one.moved) for one in unrelated if one.moved is not None]
    beyond = [f"{name} {by:.2f} times" for name, by in moved if by > MAX_MOVED]
    if beyond:
        reasons.append(
            f"The edits move monitors of other concepts as well: {', '.join(beyond)} as far as its own (limit {MAX_MOVED})."
        )
    return not beyond


def _reading_flags(read: Read) -> list[str]:
    others = (("leaky", read.masked_auroc), ("wording", read.paraphrased_auroc))
    return [flag for flag, found in others if found is not None and read.auroc.value - found > _MAX_DROP]


def _is_illusory(measured: Measured, reasons: list[str], *, removes: bool, writes: bool) -> bool:
    """The effect may run over a path that the model does not use."""
    f = measured.faithfulness
    unnatural = f is not None and (
        f.patch_ratio > _MAX_PATCH_RATIO
        or f.on_distribution < _MIN_ON_DISTRIBUTION
        or f.norm_ratio > _MAX_NORM_RATIO
    )
    if f is not None and unnatural:
        reasons.append(
            f"The effect may run over a path that the model does not use: the direction's patch does {f.patch_ratio:.2f} of the "
            f"full one, {f.on_distribution:.0%} of edits are on distribution, rows are {f.norm_ratio:.2f} times as long as natural ones."
        )
    agreement = f.gradient_agreement if f is not None else None
    if writes and agreement is not None and agreement < _MIN_GRADIENT_AGREEMENT:
        reasons.append(
            f"The gradient foretells the sign of the effect on {agreement:.0%} of prompts only (limit "
            f"{_MIN_GRADIENT_AGREEMENT:.0%}): behaviour is no line in the dose."
        )
    later = [one for one in measured.downstream if one.natural_auroc >= _MIN_LATER_AUROC]
    unfollowed = bool(later) and (
        (removes and all(one.removed.low <= 0 for one in later))
        or (writes and all(one.written.low <= 0 for one in later))
    )
    if unfollowed:
        reasons.append(
            "Behaviour moves, but no probe at a later layer moves with it: the effect may not run over the concept."
        )
    return unnatural or unfollowed


def _place_flags(measured: Measured, reasons: list[str]) -> list[str]:
    flags = []
    own = max((e.effect.value for e in (*measured.necessity, *measured.sufficiency)), default=0.0)
    far = [max(s.necessity or 0.0, s.sufficiency or 0.0) for s in measured.sites]
    if far and max(far) < own / 2:
        flags.append("fragile-layer")
        reasons.append("At the layers around it the same direction has less than half of the effect.")
    anywhere = [max(p.necessity, p.sufficiency) for p in measured.positions if p.position == "random"]
    if anywhere and max(anywhere) >= own:
        reasons.append(
            f"The same edit of one random token does as much ({max(anywhere):.2f}): the effect is bound to no place."
        )
    if measured.anti_steerable is not None and measured.anti_steerable > MAX_ANTI_STEERABLE:
        flags.append("anti-steerable")
        reasons.append(
            f"{measured.anti_steerable:.0%} of prompts move the wrong way under doses (limit 25 %)."
        )
    return flags


def _tell_of_what_remains(downstream: Sequence[Downstream], reasons: list[str]) -> None:
    """At the later layer where the concept is read best."""
    if not downstream:
        return
    best = max(downstream, key=lambda one: one.natural_auroc)
    if best.natural_auroc < _MIN_LATER_AUROC:
        return
    survives = best.natural_auroc - best.refit_auroc <= _MAX_DROP
    reasons.append(
        f"With it removed from every example, a probe fitted anew at {best.hook_point} reads the concept with AUROC "
        f"{best.refit_auroc:.3f} ({best.natural_auroc:.3f} without the edit): the model "
        + (
            "holds it in other directions, too, and may use those."
            if survives
            else "holds less of it elsewhere."
        )
    )


def _excludes_zero(interval: Interval) -> bool:
    return interval.low > 0 or interval.high < 0
