"""The card's section 'causal': does the model use what the monitor reads? Definitions: docs/causal-card.md."""

from typing import Literal

from monitors.lab.sections.base import CardPart, Interval, Phase, RandomDirections, Section
from monitors.types import CausalVerdict


class Read(CardPart):
    auroc: Interval
    tpr_at_1pct: Interval | None = None  # at 1 % false positives; None: fewer than 100 negatives
    random: RandomDirections
    random_percentile: float  # share of random directions that read no better than the monitor
    sham_aurocs: tuple[float, ...]  # the same recipe on permuted labels
    sham_percentile: float = 0.0  # share of shams, by the better of their two signs, that the monitor beats
    selectivity: float  # auroc - mean sham auroc
    length_auroc: float
    tfidf_auroc: float
    first_layer_auroc: float
    masked_auroc: float | None = None  # with the telling text masked; None: no masked examples were given
    paraphrased_auroc: float | None = None  # in other words or another language; None: none were given


class Effect(CardPart):
    """A normalised effect (1: as large as the difference between the classes) against what null edits do."""

    effect: Interval
    null_low: float  # 2.5 % and 97.5 % of the null edits
    null_high: float
    num_nulls: int
    p_value: (
        float  # (1 + #{|null| >= |effect|}) / (1 + #nulls), Holm-corrected over necessity and sufficiency
    )
    z: float | None = None  # (effect - mean of the nulls) / their standard deviation
    matched_by: Literal["norm", "kl"] = "norm"
    num_unmatched: int = 0  # nulls whose KL stayed below 2/3 of the edit's: weaker than they should be
    wrong_sign: float | None = None  # effect of the same edit with the direction turned round


class Dose(CardPart):
    dose: float  # in class gaps
    effect: Interval


class Specificity(CardPart):
    """What the edits do to neutral text."""

    mean_kl: float
    p95_kl: float
    perplexity_ratio: float
    top1_agreement: float
    safety_change: Interval | None = None  # of the refusal log-odds on harmful prompts; None: none were given


class Faithfulness(CardPart):
    patch_ratio: float  # effect of patching the direction alone / of patching the full residual
    on_distribution: float  # share of edited projections within the natural 1 to 99 %
    norm_ratio: float  # mean ||x'|| / mean ||x|| in the class of longer rows; the larger of both edits
    gradient_agreement: float | None = None  # attribution patching: share of prompts with the same sign


class SiteEffect(CardPart):
    hook_point: str
    necessity: float | None
    sufficiency: float | None


class PositionEffect(CardPart):
    """The same edit of one token."""

    position: Literal[
        "last", "random"
    ]  # the prompt's last token, or one before it, drawn anew for each prompt
    necessity: float
    sufficiency: float


class Downstream(CardPart):
    """What a later layer makes of the edits, by logistic probes that were fitted there."""

    hook_point: str
    natural_auroc: (
        float  # of the probe on rows without an edit; the other figures mean nothing if it reads nothing
    )
    removed: Interval  # share of the probe's class gap that removal takes from positives
    written: Interval  # share that writing gives to negatives
    refit_auroc: float  # of a probe fitted, and tested, on rows of which all had the direction removed


class Unrelated(CardPart):
    """Another monitor, which the user says is of another concept."""

    monitor: str
    necessity: float  # what a null edit does that is written where this monitor's score varies
    sufficiency: float
    moved: float | None = None
    """How far the edits move its score, as a multiple of how far they move the own monitor's; both in standard
    deviations over the prompts. None: it reads nothing here that can be told apart."""


class DataPart(CardPart):
    """Examples beside those that were tested on."""

    name: str  # train, neutral, harmful, masked, paraphrased
    num_examples: int
    data_sha256: str


class CausalSection(Section):
    mode: Literal["quick", "full"]
    phase: Phase
    others: tuple[
        DataPart, ...
    ] = ()  # as given; parts that were not given are taken from the tested ones, or left out
    num_prompts: int | None = None  # that were intervened on
    behaviour: str | None  # how behaviour was measured; None: it was not, so only reading was tested
    hook_point: str
    gap: float  # distance of the class means along the direction
    read: Read
    necessity: tuple[Effect, ...] = ()  # one per matching of the nulls
    sufficiency: tuple[Effect, ...] = ()
    doses: tuple[Dose, ...] = ()
    dose_slope: float | None = None
    dose_spearman: float | None = None
    anti_steerable: float | None = None  # share of prompts that move the wrong way
    specificity: Specificity | None = None
    faithfulness: Faithfulness | None = None
    sites: tuple[SiteEffect, ...] = ()
    positions: tuple[PositionEffect, ...] = ()
    downstream: tuple[Downstream, ...] = ()
    unrelated: tuple[Unrelated, ...] = ()
    flags: tuple[str, ...] = ()  # entangled, leaky, wording, illusion-risk, fragile-layer, anti-steerable
    verdict: CausalVerdict
    reasons: tuple[str, ...]  # in sentences, why this verdict
