"""Sampling against its plain definitions."""

from collections import Counter

import pytest
import torch

from server.engines.base import SamplingParams
from server.engines.transformers.sampling import Sampler, with_logprobs

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0])
CPU = torch.device("cpu")


def draws(count=4000, prompt=(), **params):
    sampler = Sampler(SamplingParams(seed=0, **params), list(prompt), CPU)
    counts = Counter(sampler.draw(LOGITS).token_id for _ in range(count))
    return torch.tensor([counts[i] / count for i in range(5)])


def test_temperature_zero_is_the_argmax():
    assert draws(10, temperature=0)[4] == 1


def test_frequencies_follow_the_softmax():
    for temperature in (0.7, 1.0, 2.0):
        torch.testing.assert_close(
            draws(temperature=temperature), torch.softmax(LOGITS / temperature, -1), atol=0.03, rtol=0
        )


def test_top_k_keeps_the_k_most_likely():
    want = torch.softmax(LOGITS, -1).index_fill(0, torch.tensor([1, 2, 3]), 0)
    torch.testing.assert_close(draws(top_k=2), want / want.sum(), atol=0.03, rtol=0)


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    p = torch.softmax(LOGITS, -1)  # .64 .23 .09 .03 .01
    want = p.index_fill(0, torch.tensor([2, 3]), 0)
    got = draws(top_p=float(p[4] + p[0] + 0.01))  # the third is needed to get there
    torch.testing.assert_close(got, want / want.sum(), atol=0.03, rtol=0)
    assert draws(100, top_p=0.01)[4] == 1


def test_min_p_drops_what_is_far_less_likely_than_the_best():
    assert draws(min_p=0.3).gt(0).tolist() == [True, False, False, False, True]


def test_logit_bias_and_penalties_change_the_choice():
    assert draws(10, temperature=0, logit_bias={2: 100.0})[2] == 1
    assert set(torch.nonzero(draws(5, temperature=0, presence_penalty=2.0)).flatten().tolist()) > {4}
    assert draws(1, prompt=[4], temperature=0, repetition_penalty=2.0)[0] == 1


def test_a_seed_repeats_itself():
    def sequence(seed):
        sampler = Sampler(SamplingParams(seed=seed), [], CPU)
        return [sampler.draw(LOGITS).token_id for _ in range(30)]

    assert sequence(1) == sequence(1) != sequence(2)


def test_logprobs_are_of_the_raw_logits():
    (drawn,) = with_logprobs(LOGITS[None], [1], 2)
    want = torch.log_softmax(LOGITS, -1)
    assert drawn.logprob == pytest.approx(float(want[1]))
    assert [token for token, _ in drawn.top] == [4, 0]


def test_logits_that_are_not_finite_are_an_error():
    with pytest.raises(ValueError, match="finite"):
        Sampler(SamplingParams(), [], CPU).draw(torch.tensor([float("nan"), 1.0]))
