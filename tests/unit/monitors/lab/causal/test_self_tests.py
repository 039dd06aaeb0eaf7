"""The causal card on models whose answer is known: it must find a cause, and must not find one that isn't there."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from monitors.lab.activations import collect
from monitors.lab.causal import FULL, QUICK, Subjects, Verification, parse_behaviour, verify
from monitors.lab.pooling import Pooled
from monitors.lab.recipes import Recipe, fit
from monitors.types import CausalVerdict
from tests.unit.monitors.lab.causal.toy import (
    BYSTANDER,
    CAUSE,
    MEAN,
    POINT,
    YES,
    D,
    probe,
    toy_examples,
    toy_subject,
)

RECIPE = Recipe("mass_mean", (POINT,), "prompt", MEAN)


def verified(
    monitor, cache, *, plan=QUICK, num=96, behaviour="continuations", recipe=RECIPE, rest=None, **data
):
    subject, test = toy_subject(), toy_examples(num)
    data = Subjects(**{"test": test, "neutral": toy_examples(20, seed=5)[::2], **data})
    parsed = parse_behaviour(behaviour, subject, test[0]) if behaviour else None
    job = Verification(monitor, subject, data, plan, recipe, parsed, **(rest or {}))
    return verify(job, cache, "0" * 64)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def causal(cache):
    return verified(probe(CAUSE), cache, behaviour=f"tokens:{YES}")


def test_a_planted_cause_is_causal(causal):
    assert causal.verdict is CausalVerdict.CAUSAL, causal.reasons
    for effect in (causal.necessity[0], causal.sufficiency[0]):
        assert effect.effect.low > 0.5
        assert effect.null_high < effect.effect.low
        assert effect.wrong_sign < 0
    assert causal.dose_spearman == pytest.approx(1.0)
    assert causal.anti_steerable == 0.0
    assert causal.read.selectivity > 0.3
    assert causal.flags == ()
    assert min(effect.z for effect in (*causal.necessity, *causal.sufficiency)) > 3


def test_a_planted_cause_works_at_the_token_that_is_answered_from_and_nowhere_else(causal):
    """Behind the first block no token of the toy reads another."""
    last, random = causal.positions
    assert (last.position, random.position) == ("last", "random")
    assert last.necessity == pytest.approx(causal.necessity[0].effect.value, abs=1e-5)
    assert last.sufficiency == pytest.approx(causal.sufficiency[0].effect.value, abs=1e-5)
    assert (random.necessity, random.sufficiency) == pytest.approx((0.0, 0.0), abs=1e-5)


def test_a_later_probe_follows_a_planted_cause_and_a_new_one_finds_the_bystander(causal):
    (later,) = causal.downstream
    assert later.hook_point == "blocks.3.hook_resid_post"
    assert 0.3 < later.removed.low < later.removed.high < 0.7  # half of the concept is the bystander
    assert 0.3 < later.written.low < later.written.high < 0.7
    assert later.refit_auroc > 0.95
    assert any("holds it in other directions" in reason for reason in causal.reasons)


OTHER = torch.randn(D, generator=torch.Generator().manual_seed(102))
OTHER -= (OTHER @ CAUSE) * CAUSE + (OTHER @ BYSTANDER) * BYSTANDER


def test_a_monitor_of_another_concept_is_not_moved_and_its_direction_moves_nothing(cache, causal):
    other = replace(probe(OTHER / OTHER.norm()), name="other")
    section = verified(probe(CAUSE), cache, behaviour=f"tokens:{YES}", rest={"unrelated": (other,)})
    (found,) = section.unrelated
    assert found.monitor == "other"
    assert found.moved < 0.01
    assert abs(found.necessity) < 0.2
    assert abs(found.sufficiency) < 0.2
    assert section.necessity[0].num_nulls == causal.necessity[0].num_nulls + 1
    assert section.verdict is CausalVerdict.CAUSAL


def test_a_monitor_of_another_concept_that_the_edit_moves_bars_steering(cache):
    mixed = replace(probe(CAUSE + OTHER / OTHER.norm()), name="mixed")
    section = verified(probe(CAUSE), cache, behaviour=f"tokens:{YES}", rest={"unrelated": (mixed,)})
    assert section.unrelated[0].moved > 0.5
    assert (section.verdict, section.flags) == (CausalVerdict.READOUT, ("entangled",))


def test_an_unrelated_monitor_that_never_varies_is_refused(cache):
    deaf = replace(probe(torch.zeros(D)), name="deaf")
    with pytest.raises(ValueError, match="monitor 'deaf' says the same of all examples"):
        verified(probe(CAUSE), cache, rest={"unrelated": (deaf,)})


@pytest.mark.parametrize("behaviour", [f"tokens:{YES}", "continuations"])
def test_as_many_sequences_are_run_as_were_announced(cache, behaviour):
    announced, done = [], []
    rest = {
        "unrelated": (replace(probe(OTHER), name="other"),),
        "announce": announced.append,
        "intervening": lambda now, total: done.append((now, total)),
    }
    verified(probe(CAUSE), cache, behaviour=behaviour, rest=rest)
    assert done[-1] == (announced[0], announced[0])
    assert done[-2][0] < announced[0]


def test_a_planted_cause_is_causal_with_nulls_of_equal_kl_too(cache):
    section = verified(
        probe(CAUSE),
        cache,
        plan=replace(FULL, num_per_class=12, num_random=6, num_neutral=6),
        num=96,
        behaviour=f"tokens:{YES}",
    )
    assert section.verdict is CausalVerdict.CAUSAL, section.reasons
    assert [e.matched_by for e in section.necessity] == ["norm", "kl"]
    assert len(section.downstream) == 2
    for effect in (*section.necessity, *section.sufficiency):
        assert effect.num_unmatched == 0
        assert effect.p_value == pytest.approx(2 / (1 + effect.num_nulls))  # no null did as much; Holm of two


def test_a_planted_bystander_is_a_readout(cache):
    section = verified(probe(BYSTANDER), cache)
    assert section.verdict is CausalVerdict.READOUT, section.reasons
    assert section.read.auroc.value > 0.95
    assert abs(section.necessity[0].effect.value) < 0.05
    assert abs(section.sufficiency[0].effect.value) < 0.05


@pytest.mark.parametrize("seed", [3, 4])
def test_a_random_direction_is_invalid(cache, seed):
    random = torch.randn(D, generator=torch.Generator().manual_seed(seed))
    random -= (random @ CAUSE) * CAUSE + (random @ BYSTANDER) * BYSTANDER
    assert verified(probe(random), cache, behaviour=None).verdict is CausalVerdict.INVALID


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_monitor_of_shuffled_labels_is_invalid(cache, seed):
    acts = collect(toy_subject(), toy_examples(80, seed=11), [POINT], cache)
    labels = np.random.default_rng(seed).permutation(acts.labels)
    sham = fit(RECIPE, Pooled(acts), range(80), labels)
    assert verified(sham, cache, behaviour=None).verdict is CausalVerdict.INVALID


def test_a_monitor_that_only_reads_leaked_text_is_flagged(cache):
    negatives = [e for e in toy_examples(80, seed=22) if e.label == 0]
    masked = tuple(replace(e, label=i % 2) for i, e in enumerate(negatives))  # nothing telling is left
    section = verified(probe(CAUSE), cache, behaviour=None, masked=masked)
    assert "leaky" in section.flags
    assert section.read.masked_auroc < section.read.auroc.value - 0.1


def test_a_monitor_that_does_not_know_other_words_is_flagged(cache):
    strange = tuple(replace(e, tags={"ids": "20 21 22"}) for e in toy_examples(40, seed=23))
    section = verified(probe(CAUSE), cache, behaviour=None, paraphrased=strange)
    assert section.flags == ("wording",)
    assert section.read.paraphrased_auroc == pytest.approx(0.5)
    (part,) = section.others[1:]  # after the neutral text
    assert (part.name, part.num_examples) == ("paraphrased", 40)


def test_a_rate_at_one_per_cent_is_told_where_there_are_enough_negatives(cache, causal):
    assert causal.read.tpr_at_1pct is None
    section = verified(probe(CAUSE), cache, behaviour=None, num=420)
    assert section.read.tpr_at_1pct.value > 0.9


def test_without_behaviour_the_causal_part_is_not_tested(cache):
    section = verified(probe(CAUSE), cache, behaviour=None)
    assert section.verdict is CausalVerdict.READOUT
    assert (section.necessity, section.sufficiency, section.doses) == ((), (), ())
    assert any("not tested" in reason for reason in section.reasons)


def test_words_that_read_better_make_a_monitor_invalid(cache):
    noisy = probe(0.4 * CAUSE + torch.randn(D, generator=torch.Generator().manual_seed(1)))
    test = toy_examples(96, telling_text=True)
    section = verified(noisy, cache, behaviour=None, test=test)
    assert section.read.tfidf_auroc > 0.95
    assert section.verdict is CausalVerdict.INVALID


def test_the_same_seed_gives_the_same_section(cache, causal):
    assert verified(probe(CAUSE), cache, behaviour=f"tokens:{YES}") == causal
