"""From figures to the verdict, its flags and its reasons."""

import pytest

from monitors.lab.causal.verdict import Measured, judge
from monitors.lab.sections.base import Interval, RandomDirections
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

GOOD_READ = Read(
    auroc=Interval(value=0.95, low=0.9, high=0.98),
    random=RandomDirections(num_directions=40, mean_auroc=0.6, p95_auroc=0.8, best_auroc=0.85),
    random_percentile=1.0,
    sham_aurocs=(0.5, 0.3),
    sham_percentile=1.0,
    selectivity=0.5,
    length_auroc=0.5,
    tfidf_auroc=0.7,
    first_layer_auroc=0.6,
)
STRONG = Effect(
    effect=Interval(value=0.8, low=0.6, high=0.9), null_low=-0.1, null_high=0.1, num_nulls=9, p_value=0.2
)
WEAK = STRONG.model_copy(update={"effect": Interval(value=0.05, low=0.01, high=0.1), "null_high": 0.3})
LIKE_NULLS = STRONG.model_copy(update={"null_high": 0.85})
SPECIFIC = Specificity(mean_kl=0.01, p95_kl=0.2, perplexity_ratio=1.01, top1_agreement=0.99)
DIFFERS = Interval(value=3.0, low=2.0, high=4.0)


@pytest.mark.parametrize(
    ("necessity", "sufficiency", "verdict"),
    [
        ((STRONG,), (STRONG,), "causal"),
        ((STRONG,), (WEAK,), "necessary"),
        ((WEAK,), (STRONG,), "write-handle"),
        ((WEAK,), (WEAK,), "readout"),
        ((STRONG, LIKE_NULLS), (STRONG, STRONG), "write-handle"),  # every matching of the nulls counts
    ],
)
def test_the_verdict_follows_from_the_effects(necessity, sufficiency, verdict):
    found = judge(GOOD_READ, Measured(DIFFERS, necessity, sufficiency, SPECIFIC))
    assert found.verdict == verdict
    assert found.flags == ()


@pytest.mark.parametrize(
    "specificity",
    [
        SPECIFIC.model_copy(update={"mean_kl": 0.11}),
        SPECIFIC.model_copy(update={"p95_kl": 1.1}),
        SPECIFIC.model_copy(update={"perplexity_ratio": 1.06}),
        SPECIFIC.model_copy(update={"top1_agreement": 0.97}),
        SPECIFIC.model_copy(update={"safety_change": Interval(value=-1.0, low=-1.5, high=-0.2)}),
    ],
)
def test_what_is_not_specific_may_not_steer(specificity):
    found = judge(GOOD_READ, Measured(DIFFERS, (STRONG,), (STRONG,), specificity))
    assert (found.verdict, found.flags) == (CausalVerdict.READOUT, ("entangled",))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"auroc": Interval(value=0.6, low=0.45, high=0.7)}, "does not exclude chance"),
        ({"sham_percentile": 0.9}, "permuted labels"),
        ({"random_percentile": 0.9}, "random directions"),
        ({"tfidf_auroc": 0.99}, "TF-IDF alone"),
        ({"length_auroc": 0.99}, "length alone"),
    ],
)
def test_a_monitor_that_reads_nothing_is_invalid_whatever_its_direction_does(change, told):
    read = GOOD_READ.model_copy(update=change)
    for measured in (None, Measured(DIFFERS, (STRONG,), (STRONG,), SPECIFIC)):
        found = judge(read, measured)
        assert found.verdict is CausalVerdict.INVALID
        assert any(told in reason for reason in found.reasons)


def test_behaviour_that_does_not_differ_leaves_the_causal_part_open():
    found = judge(GOOD_READ, Measured(Interval(value=0.1, low=-0.2, high=0.3)))
    assert found.verdict is CausalVerdict.READOUT
    assert "not tested" in found.reasons[-1]


def test_flags_say_what_is_doubtful():
    read = GOOD_READ.model_copy(update={"masked_auroc": 0.6})
    doubtful = Faithfulness(patch_ratio=1.5, on_distribution=1.0, norm_ratio=1.0)
    far = (SiteEffect(hook_point="blocks.3.hook_resid_post", necessity=0.1, sufficiency=0.2),)
    found = judge(read, Measured(DIFFERS, (STRONG,), (STRONG,), SPECIFIC, doubtful, far, anti_steerable=0.3))
    assert found.flags == ("leaky", "illusion-risk", "fragile-layer", "anti-steerable")
    assert found.verdict is CausalVerdict.CAUSAL


def test_an_edit_that_does_nothing_has_no_doubtful_effect():
    doubtful = Faithfulness(patch_ratio=1.5, on_distribution=0.5, norm_ratio=2.0)
    far = (SiteEffect(hook_point="blocks.3.hook_resid_post", necessity=0.0, sufficiency=0.0),)
    found = judge(GOOD_READ, Measured(DIFFERS, (WEAK,), (WEAK,), SPECIFIC, doubtful, far, anti_steerable=0.6))
    assert (found.verdict, found.flags) == (CausalVerdict.READOUT, ())


def test_other_words_that_are_read_worse_are_flagged():
    assert judge(GOOD_READ.model_copy(update={"paraphrased_auroc": 0.84}), None).flags == ("wording",)
    assert judge(GOOD_READ.model_copy(update={"paraphrased_auroc": 0.86}), None).flags == ()


@pytest.mark.parametrize(
    ("moved", "verdict", "flags"),
    [
        (0.49, CausalVerdict.CAUSAL, ()),
        (None, CausalVerdict.CAUSAL, ()),
        (0.51, CausalVerdict.READOUT, ("entangled",)),
    ],
)
def test_an_edit_that_moves_a_monitor_of_another_concept_may_not_steer(moved, verdict, flags):
    other = Unrelated(monitor="other", necessity=0.0, sufficiency=0.0, moved=moved)
    found = judge(GOOD_READ, Measured(DIFFERS, (STRONG,), (STRONG,), SPECIFIC, unrelated=(other,)))
    assert (found.verdict, found.flags) == (verdict, flags)
    assert any("other 0.51 times" in reason for reason in found.reasons) == bool(flags)


@pytest.mark.parametrize(
    ("num_unmatched", "verdict"), [(4, CausalVerdict.CAUSAL), (5, CausalVerdict.READOUT)]
)
def test_null_edits_that_are_mostly_too_weak_prove_nothing(num_unmatched, verdict):
    by_kl = STRONG.model_copy(update={"matched_by": "kl", "num_unmatched": num_unmatched})
    found = judge(GOOD_READ, Measured(DIFFERS, (STRONG, by_kl), (STRONG, by_kl), SPECIFIC))
    assert found.verdict is verdict
    assert any(f"{num_unmatched} of them weaker" in reason for reason in found.reasons)


def later(removed: float, *, natural_auroc: float = 0.95, refit_auroc: float = 0.6) -> Downstream:
    moved = Interval(value=removed, low=removed - 0.05, high=removed + 0.05)
    return Downstream(
        hook_point="blocks.3.hook_resid_post",
        natural_auroc=natural_auroc,
        removed=moved,
        written=moved,
        refit_auroc=refit_auroc,
    )


@pytest.mark.parametrize(
    ("downstream", "flags"),
    [
        ((later(0.0),), ("illusion-risk",)),
        ((later(0.0), later(0.3)), ()),  # one that follows is enough
        ((later(0.0, natural_auroc=0.6),), ()),  # a probe that reads nothing has nothing to follow with
    ],
)
def test_an_effect_that_no_later_probe_follows_may_be_an_illusion(downstream, flags):
    found = judge(GOOD_READ, Measured(DIFFERS, (STRONG,), (STRONG,), SPECIFIC, downstream=downstream))
    assert found.flags == flags


def test_what_a_probe_finds_after_the_edit_is_told():
    held = judge(GOOD_READ, Measured(DIFFERS, (WEAK,), (WEAK,), downstream=(later(0.5, refit_auroc=0.9),)))
    assert any("holds it in other directions" in reason for reason in held.reasons)
    gone = judge(GOOD_READ, Measured(DIFFERS, (WEAK,), (WEAK,), downstream=(later(0.9, refit_auroc=0.6),)))
    assert any("holds less of it elsewhere" in reason for reason in gone.reasons)


def test_an_effect_that_is_bound_to_no_place_or_bends_is_told():
    anywhere = PositionEffect(position="random", necessity=0.85, sufficiency=0.1)
    bent = Faithfulness(patch_ratio=0.8, on_distribution=1.0, norm_ratio=1.0, gradient_agreement=0.0)
    found = judge(
        GOOD_READ,
        Measured(DIFFERS, (STRONG,), (STRONG,), SPECIFIC, faithfulness=bent, positions=(anywhere,)),
    )
    assert any("bound to no place" in reason for reason in found.reasons)
    assert any("on 0% of prompts" in reason for reason in found.reasons)
    assert found.flags == ()
