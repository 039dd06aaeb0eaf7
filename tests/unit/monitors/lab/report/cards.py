"""A monitor's folder with a full card, of invented but coherent figures."""

from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from monitors.artifacts import save_monitor
from monitors.artifacts.files import MONITOR_FILE, MonitorFile, read_json
from monitors.base import Calibration, Evidence, Link, Monitor, Threshold
from monitors.lab.card import Card, write_card
from monitors.lab.sections.base import Interval, RandomDirections
from monitors.lab.sections.calibration import Budget, CalibrationSection, LengthStratum
from monitors.lab.sections.causal import (
    CausalSection,
    Dose,
    Downstream,
    Effect,
    Faithfulness,
    PositionEffect,
    Read,
    SiteEffect,
    Specificity,
    Unrelated,
)
from monitors.lab.sections.evaluation import AtFpr, Compared, EvaluationSection, Figures, Stratum
from monitors.lab.sections.fit import AggregatorPart, Candidate, FitSection, LayerBaseline, RecipePart
from monitors.linear import Linear
from monitors.types import CausalVerdict, HookPoint

DATA = "d" * 64


def about(value: float, by: float = 0.02) -> Interval:
    return Interval(value=value, low=value - by, high=min(1.0, value + by))


def figures(shift: float, seed: int) -> Figures:
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], 800)
    scores = rng.normal(size=1600) + shift * labels
    fpr, tpr, _ = roc_curve(labels, scores)
    return Figures(
        auroc=about(float(roc_auc_score(labels, scores))),
        log_auroc=0.4,
        at_fpr=(AtFpr(fpr=0.01, tpr=about(0.5)),),
        roc=tuple(
            zip(
                fpr[:: max(1, len(fpr) // 200)].tolist(),
                tpr[:: max(1, len(fpr) // 200)].tolist(),
                strict=True,
            )
        ),
    )


RANDOM = RandomDirections(num_directions=40, mean_auroc=0.58, p95_auroc=0.7, best_auroc=0.74)


def compared(shift: float, seed: int) -> Compared:
    return Compared(
        num_positive=800,
        num_negative=800,
        monitor=figures(shift, seed),
        tfidf=figures(shift / 2, seed + 1),
        random=RANDOM,
    )


def recipe(layer: int, trainer: str = "logistic") -> RecipePart:
    return RecipePart(
        trainer=trainer,
        hook_points=(f"blocks.{layer}.hook_resid_post",),
        phase="prompt",
        aggregator=AggregatorPart(kind="ema", alpha=0.5),
        settings={"penalty": 1.0},
    )


def write(
    folder: Path, *, name: str = "harm", dataset: str = "forum", verdict: CausalVerdict = CausalVerdict.CAUSAL
) -> None:
    """A monitor with every section."""
    evidence = Evidence(auroc=0.96, baseline_auroc=0.8, verdict=verdict, card="card.json")
    thresholds = (
        Threshold("prompt", 0.01, 2.3, certified=True),
        Threshold("prompt", 0.001, 3.2, certified=False),
    )
    monitor = Monitor(
        name,
        Linear((HookPoint(3),), torch.ones(1, 8), torch.zeros(1)),
        link=Link.IDENTITY,
        calibration=Calibration(1200, 0.95, thresholds),
        evidence=evidence,
    )
    save_monitor(monitor, folder, fingerprint="f" * 64)
    sha = read_json(folder / MONITOR_FILE, folder.parent, MonitorFile).weights_sha256
    card = Card(monitor=name, fingerprint="f" * 64)
    for section in (fit(sha), evaluation(sha, dataset), calibration(sha), causal(sha, verdict)):
        card = card.with_section(section)
    write_card(card, folder)


def fit(sha: str) -> FitSection:
    curve = [0.71, 0.83, 0.91, 0.96, 0.95, 0.93]
    candidates = [Candidate(recipe=recipe(i), auroc=about(v), tpr_at_1pct=0.5) for i, v in enumerate(curve)]
    candidates += [
        Candidate(recipe=recipe(i, "mass_mean"), auroc=about(v - 0.05)) for i, v in enumerate(curve)
    ]
    return FitSection(
        weights_sha256=sha,
        data_sha256=DATA,
        num_examples=1600,
        num_positive=800,
        num_groups=40,
        num_folds=5,
        recipe=recipe(3),
        candidates=tuple(candidates),
        tfidf_auroc=about(0.8),
        random=tuple(
            LayerBaseline(hook_point=f"blocks.{i}.hook_resid_post", random=RANDOM) for i in range(6)
        ),
    )


def evaluation(sha: str, dataset: str) -> EvaluationSection:
    strata = tuple(Stratum(name=n, compared=compared(s, 7)) for n, s in ((dataset, 2.2), ("mail", 1.4)))
    return EvaluationSection(
        weights_sha256=sha,
        data_sha256=DATA,
        num_examples=1600,
        phase="prompt",
        tfidf_fitted_on="training data",
        whole=compared(2.4, 3),
        by_dataset=strata,
        leave_one_dataset_out=strata,
        detection_delay_tokens=(3, 8, 15),
    )


def calibration(sha: str) -> CalibrationSection:
    scores = np.random.default_rng(5).normal(size=1200)
    return CalibrationSection(
        weights_sha256=sha,
        data_sha256=DATA,
        num_examples=1200,
        phase="prompt",
        confidence=0.95,
        budgets=(
            Budget(fpr=0.01, threshold=2.3, certified=True, rank=6, num_needed=299),
            Budget(fpr=0.001, threshold=3.2, certified=False, rank=0, num_needed=2995),
        ),
        by_length=tuple(
            LengthStratum(
                budget=b,
                min_tokens=10 * i + 1,
                max_tokens=10 * i + 10,
                num_requests=240,
                fpr=Interval(value=b * i / 2, low=0, high=b * (i + 1)),
            )
            for b in (0.01, 0.001)
            for i in range(5)
        ),
        quantiles=tuple(np.quantile(scores, np.linspace(0, 1, 101)).tolist()),
    )


def causal(sha: str, verdict: CausalVerdict) -> CausalSection:
    effect = Effect(effect=about(0.7, 0.1), null_low=-0.05, null_high=0.06, num_nulls=25, p_value=0.04)
    return CausalSection(
        weights_sha256=sha,
        data_sha256=DATA,
        num_examples=128,
        mode="full",
        phase="prompt",
        behaviour="log-odds of 'Sorry' at the first token of the reply",
        hook_point="blocks.3.hook_resid_post",
        gap=4.2,
        read=Read(
            auroc=about(0.96),
            random=RANDOM,
            random_percentile=1.0,
            sham_aurocs=(0.48, 0.5, 0.52, 0.55),
            selectivity=0.45,
            length_auroc=0.55,
            tfidf_auroc=0.8,
            first_layer_auroc=0.7,
            tpr_at_1pct=about(0.63),
            paraphrased_auroc=0.87,
        ),
        necessity=(effect, effect.model_copy(update={"matched_by": "kl"})),
        sufficiency=(effect,),
        doses=tuple(Dose(dose=d, effect=about(d * 0.6, 0.1)) for d in (-1, -0.5, 0, 0.5, 1, 1.5)),
        dose_slope=0.6,
        dose_spearman=0.99,
        anti_steerable=0.04,
        specificity=Specificity(mean_kl=0.01, p95_kl=0.2, perplexity_ratio=1.01, top1_agreement=0.99),
        faithfulness=Faithfulness(
            patch_ratio=0.8, on_distribution=0.97, norm_ratio=1.05, gradient_agreement=0.9
        ),
        sites=(SiteEffect(hook_point="blocks.1.hook_resid_post", necessity=0.2, sufficiency=None),),
        positions=(
            PositionEffect(position="last", necessity=0.31, sufficiency=0.4),
            PositionEffect(position="random", necessity=0.02, sufficiency=0.03),
        ),
        downstream=(
            Downstream(
                hook_point="blocks.5.hook_resid_post",
                natural_auroc=0.97,
                removed=about(0.8),
                written=about(0.7),
                refit_auroc=0.66,
            ),
        ),
        unrelated=(Unrelated(monitor="<b>spam", necessity=0.01, sufficiency=0.02, moved=0.12),),
        flags=("fragile-layer",),
        verdict=verdict,
        reasons=("It reads better than shuffled labels.", "Both effects are outside of what null edits do."),
    )
