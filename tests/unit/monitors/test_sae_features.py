"""Sets of SAE features as one monitor."""

import pytest
import torch

from monitors.aggregate import AggregatorSpec
from monitors.bank import Bank
from monitors.base import Monitor, Scale
from monitors.sae.base import Among, Rectifiers, SaeError, Selection, SparseAutoencoder
from monitors.sae_features import Combine, SaeFeatures, Squash
from monitors.types import HookPoint

POINT, D, NUM = HookPoint(1), 8, 24
CHOSEN = (3, 17, 5)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sae(**changes):
    usual = {
        "hook_point": POINT,
        "W_enc": randn(D, NUM, seed=1),
        "W_dec": randn(NUM, D, seed=2),
        "b_enc": randn(NUM, seed=3),
        "b_subtracted": randn(D, seed=4),
        "scale": Scale.NONE,
        "rectifiers": None,
    }
    return SparseAutoencoder(**(usual | changes))


GATED = Rectifiers(randn(NUM, seed=5), randn(NUM, seed=6).exp(), randn(NUM, seed=7))
SAES = {
    "relu": sae(),
    "jumprelu": sae(rectifiers=Rectifiers.jump(randn(NUM, seed=5).abs())),
    "gated": sae(rectifiers=GATED, b_subtracted=None),
    "layer_norm": sae(scale=Scale.LAYER_NORM),
    "topk": sae(selection=Selection(Among.ALL, 4), scale=Scale.SQRT_D),
    "groupmax": sae(selection=Selection(Among.GROUP, 6)),
}
WEIGHT, BIAS = torch.tensor([0.5, -2.0, 1.5]), torch.tensor([0.25, 0.0, -1.0])


def features(name, **settings):
    return SaeFeatures.of(SAES[name], CHOSEN, WEIGHT, BIAS, whole=True, **settings)


def read(transform, x):
    bank = Bank([Monitor("m", transform, AggregatorSpec("max"))], "cpu")
    buffer = bank.begin(len(x))
    bank.read(POINT, x, buffer)
    return bank.end(buffer)[:, 0]


@pytest.mark.parametrize("squash", Squash)
@pytest.mark.parametrize("combine", Combine)
@pytest.mark.parametrize("name", SAES)
def test_equals_the_whole_encoder_read_at_the_chosen_features(name, combine, squash):
    x = 2 * randn(40, D, seed=9)
    f = SAES[name].encode(x).double()[:, list(CHOSEN)]
    assert (f > 0).any(dim=0).all()
    assert (f == 0).any(dim=0).all()
    g = f.log1p() if squash is Squash.LOG1P else f
    each = g * WEIGHT + BIAS
    expected = each.sum(dim=1) if combine is Combine.SUM else each.max(dim=1).values
    found = read(features(name, combine=combine, squash=squash), x)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["relu", "jumprelu", "gated", "layer_norm"])
def test_only_the_chosen_rows_are_kept_where_features_act_for_themselves(name):
    assert features(name).encoder.shape == (3, D)
    one = SaeFeatures.of(SAES[name], [7], torch.ones(1), torch.zeros(1))
    x = randn(9, D, seed=9)
    torch.testing.assert_close(read(one, x), SAES[name].feature(7).column.evaluate(x))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("combine", Combine)
@pytest.mark.parametrize("name", SAES)
def test_a_broken_row_is_never_a_low_score_though_a_selection_drops_most_of_it(name, combine, bad):
    x = randn(6, D, seed=9)
    x[2, 5] = bad
    found = read(features(name, combine=combine), x)
    assert found.isfinite().tolist() == [True, True, False, True, True, True]


@pytest.mark.parametrize("name", ["topk", "groupmax"])
def test_features_that_depend_on_each_other_need_the_whole_encoder_and_say_so(name):
    with pytest.raises(
        SaeError, match=r"selected rows are not exact; ask for the whole encoder \('encode': 'whole'\)"
    ):
        SaeFeatures.of(SAES[name], CHOSEN, WEIGHT, BIAS)
    assert features(name).encoder.shape == (NUM, D)


def test_what_writing_them_would_add_is_their_decoder_rows():
    expected = sum(w * SAES["relu"].W_dec[j] for w, j in zip(WEIGHT, CHOSEN, strict=True))
    torch.testing.assert_close(features("relu").direction, expected)


@pytest.mark.parametrize("name", SAES)
def test_comes_back_from_its_tensors(name):
    saved = features(name, combine=Combine.MAX)
    back = SaeFeatures.restore((POINT,), saved.tensors, saved.params)
    assert back.params == saved.params
    x = randn(9, D, seed=9)
    assert torch.equal(read(back, x), read(saved, x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"combine": "median"}, "param 'combine' is 'median'; known: sum, max"),
        ({"squash": None}, "param 'squash' is None; known: none, log1p"),
        ({"scale": "cube"}, "param 'scale' is 'cube'; known: none, unit"),
        ({"features": "1 2"}, "param 'features' is '1 2'; needs 3 indices"),
        ({"features": "1 2 -3"}, "needs 3 indices"),
        ({"features": "1 2 2"}, "each once"),
        ({"features": "1 2 24"}, "feature 24: the encoder has 24 rows"),
        ({"selection": "best"}, "param 'selection' is 'best'; known: topk, groupmax"),
        ({"k": 0}, "param 'k' is 0"),
    ],
)
def test_wrong_params_are_named(changes, message):
    saved = features("topk")
    with pytest.raises(ValueError, match=message):
        SaeFeatures.restore((POINT,), saved.tensors, {**saved.params, **changes})


def test_rows_that_are_not_those_of_the_features_are_refused():
    with pytest.raises(ValueError, match="has 3 rows of an encoder for 2 features"):
        SaeFeatures.restore(
            (POINT,),
            {
                **features("relu").tensors,
                "weight": torch.ones(2),
                "bias": torch.ones(2),
                "decoder": torch.ones(2, D),
            },
            {**features("relu").params, "features": "1 2"},
        )


@pytest.mark.parametrize("wrong", [(), (1, 1), (NUM,), (-1,)])
def test_features_that_do_not_exist_or_repeat_are_refused(wrong):
    with pytest.raises(ValueError, match="feature"):
        SaeFeatures.of(SAES["relu"], wrong, torch.ones(len(wrong)), torch.zeros(len(wrong)))
