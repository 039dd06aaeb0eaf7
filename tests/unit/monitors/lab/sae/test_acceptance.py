"""The acceptance test: an SAE with known figures, and the same one read with each known mistake."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from monitors.base import Scale
from monitors.lab.activations import ROWS, Activations, shard_path
from monitors.lab.dataset import Example
from monitors.lab.sae.acceptance import (
    Measured,
    Published,
    accept,
    judge,
    measure,
    read_acceptance,
    rows_at,
    write_acceptance,
)
from monitors.lab.subject import Tokens
from monitors.sae.base import SparseAutoencoder
from monitors.types import HookPoint

D, F, L0, POINT = 16, 48, 3, HookPoint(1)
SHIFT = 4.0 * torch.randn(D, generator=torch.Generator().manual_seed(5))


def dictionary():
    rows = torch.randn(F, D, generator=torch.Generator().manual_seed(1))
    return rows / rows.norm(dim=1, keepdim=True)


def planted_sae():
    """x = SHIFT + 3 sum of L0 atoms; the encoder finds atoms by projection above a threshold of 2 (3 of signal, little of others)."""
    W = dictionary()
    return SparseAutoencoder(POINT, W.T, W, torch.full((F,), -2.0), SHIFT, Scale.NONE, None, b_dec=SHIFT)


def planted_acts(folder, *, num=60, length=41, other_scale=0.1):
    g = torch.Generator().manual_seed(2)
    rows = []
    for _ in range(num * length):
        atoms = torch.randperm(F, generator=g)[:L0]
        rows.append(SHIFT + 3 * dictionary()[atoms].sum(dim=0))
    right = torch.stack(rows)
    right[::length] = 1000.0  # a first token with a norm of its own
    other = torch.randn(len(right), D, generator=g) * other_scale
    for point, rows_there in ((POINT, right), (HookPoint(2), other)):
        path = shard_path(folder, point, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({ROWS: rows_there}, path)
    examples = tuple(Example(f"{i}", text="x") for i in range(num))
    tokens = tuple(Tokens(tuple(range(length)), length) for _ in range(num))
    starts = np.arange(num, dtype=np.int64) * length
    return Activations(examples, tokens, (POINT, HookPoint(2)), D, folder, _starts=starts)


def test_figures_equal_their_plain_definition(tmp_path):
    acts, sae = planted_acts(tmp_path), planted_sae()
    x = torch.cat([acts.rows(POINT, i)[1:] for i in range(60)])
    f = torch.relu((x - SHIFT) @ dictionary().T - 2.0)
    error = x - (f @ dictionary() + SHIFT)
    found = measure(sae, rows_at(acts, POINT, 1))
    assert found.num_tokens == 60 * 40
    assert found.l0 == pytest.approx((f > 0).sum(dim=1).float().mean().item())
    variance = (x - x.mean(dim=0)).square().sum()
    assert found.fvu == pytest.approx((error.square().sum() / variance).item(), rel=1e-4)
    assert found.dead == pytest.approx(1 - (f > 0).any(dim=0).float().mean().item())


def test_an_sae_as_published_is_accepted_and_its_result_is_read_again(tmp_path):
    acts, sae = planted_acts(tmp_path), planted_sae()
    result = accept(sae, acts, Published(l0=L0), sha256="a", fingerprint="m")
    assert (result.accepted, result.reasons, result.suspects) == (True, (), ())
    write_acceptance(result, tmp_path)
    assert read_acceptance(tmp_path) == result


def test_a_bias_that_is_not_subtracted_is_found_and_named(tmp_path):
    wrong = replace(planted_sae(), b_subtracted=None)
    result = accept(wrong, planted_acts(tmp_path), Published(l0=L0), sha256="a", fingerprint="m")
    assert not result.accepted
    assert "its b_dec must be subtracted from the input, and is not" in result.suspects


def test_the_layer_beside_is_found_and_named(tmp_path):
    wrong = replace(planted_sae(), hook_point=HookPoint(2))
    result = accept(wrong, planted_acts(tmp_path), Published(l0=L0), sha256="a", fingerprint="m")
    assert not result.accepted
    assert f"it reads {POINT}, not {HookPoint(2)}" in result.suspects


FINE = Measured(num_tokens=2000, l0=30, fvu=0.2, dead=0.0)


@pytest.mark.parametrize(
    ("found", "published", "told"),
    [
        (FINE, Published(l0=16, explained_variance=0.8), None),
        (FINE, Published(l0=14.9), "published are 14.9"),
        (FINE, Published(l0=61), "published are 61"),
        (replace(FINE, fvu=1.01), Published(), "worse than the mean"),
        (replace(FINE, fvu=float("nan")), Published(), "worse than the mean"),
        (replace(FINE, l0=0), Published(), "no feature is ever active"),
        (replace(FINE, fvu=0.5), Published(explained_variance=0.8), "published are 80.0%"),
    ],
)
def test_what_is_refused(found, published, told):
    reasons = judge(found, published)
    assert bool(reasons) == (told is not None)
    assert told is None or told in reasons[0]


def test_too_little_text_can_tell_nothing():
    with pytest.raises(ValueError, match="1,999 tokens of plain text; needs 2,000 or more"):
        judge(replace(FINE, num_tokens=1999), Published())


def test_an_sae_of_another_width_is_for_another_model():
    with pytest.raises(ValueError, match="it is for another model"):
        measure(planted_sae(), lambda: iter([torch.zeros(3, D + 1)]))
