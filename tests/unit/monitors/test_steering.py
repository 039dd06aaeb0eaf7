"""Steering operations against their formulas, and the limits on every change."""

import math
from dataclasses import replace

import pytest
import torch

from monitors.base import Column, Rectifier, Scale
from monitors.steering import OPERATIONS, Direction, SteeringVector, steer
from monitors.types import CausalVerdict, HookPoint

D = 24
POINT = HookPoint(1)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vector_of(operation, direction, max_norm_ratio=1e9):
    return SteeringVector("v", operation, (direction,), max_norm_ratio)


def apply(operation, direction, x, strength, max_norm_ratio=1e9):
    strengths = torch.full((len(x), 1), strength)
    return steer(x, vector_of(operation, direction, max_norm_ratio), direction, strengths)


def test_add():
    x, v = randn(5, D), randn(D, seed=1)
    steered, dropped = apply("add", Direction(POINT, v), x, -1.5)
    torch.testing.assert_close(steered, x - 1.5 * v)
    assert dropped == 0


def test_ablate_removes_the_direction_and_nothing_else():
    x, v = randn(5, D), randn(D, seed=1)
    steered, _ = apply("ablate", Direction(POINT, v), x, 1.0)
    unit = v / v.norm()
    torch.testing.assert_close(steered @ unit, torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(steered, x - (x @ unit)[:, None] * unit)


def test_affine_puts_the_projection_between_the_class_means_and_changes_nothing_else():
    x, v = randn(6, D), 3 * randn(D, seed=1)
    unit = v / v.norm()
    low, high = 0.4 * unit + randn(D, seed=2), 2.9 * unit + randn(D, seed=3)
    direction = Direction(POINT, v, offset=float(low @ unit), gap=float((high - low) @ unit))
    for strength in (0.0, 1.0, 0.5):
        steered, _ = apply("affine", direction, x, strength)
        project = lambda h: (h @ unit)[..., None] * unit  # noqa: E731
        plain = x - project(x) + project(low) + strength * project(high - low)
        torch.testing.assert_close(steered, plain)
    steered, _ = apply("affine", direction, x, 0.0)
    torch.testing.assert_close(steered @ unit, (low @ unit).expand(6))


def test_the_cosine_gate_leaves_unrelated_rows_alone():
    x, v = randn(200, D), randn(D, seed=1)
    steered, _ = apply("cosine_gated", Direction(POINT, v, tau=0.2), x, 3.0)
    cosine = torch.cosine_similarity(x, v[None], dim=1)
    unit = v / v.norm()
    torch.testing.assert_close(steered, x + 3.0 * torch.relu(cosine.abs() - 0.2)[:, None] * unit)
    unrelated = cosine.abs() <= 0.2
    assert unrelated.any()
    assert torch.equal(steered[unrelated], x[unrelated])


@pytest.mark.parametrize("max_norm_ratio", [1e9, 0.3, 0.05])
def test_a_preserved_norm_is_kept_within_the_cap(max_norm_ratio):
    x, v = randn(50, D), randn(D, seed=1)
    vector = SteeringVector("v", "add", (Direction(POINT, v),), max_norm_ratio, norm="preserve")
    steered, dropped = steer(x, vector, vector.directions[0], torch.full((50, 1), 2.0))
    torch.testing.assert_close(steered.norm(dim=1), x.norm(dim=1))
    assert ((steered - x).norm(dim=1) <= max_norm_ratio * x.norm(dim=1) * (1 + 1e-4)).all()
    assert dropped == 0
    if max_norm_ratio > 2:
        edited = x + 2.0 * v
        plain = edited * x.norm(dim=1, keepdim=True) / edited.norm(dim=1, keepdim=True)
        torch.testing.assert_close(steered, plain, rtol=1e-4, atol=1e-5)


def test_a_preserved_norm_drops_what_is_not_finite_and_keeps_rows_that_need_no_change():
    x = torch.stack([torch.zeros(D), torch.ones(D), torch.ones(D)])
    vector = SteeringVector("v", "add", (Direction(POINT, torch.ones(D)),), norm="preserve")
    steered, dropped = steer(x, vector, vector.directions[0], torch.tensor([[math.nan], [0.0], [1.0]]))
    assert torch.equal(steered, x)
    assert dropped == 1


RECTIFIERS = [Rectifier(), Rectifier(0.4), Rectifier(-0.3, 1.4, 0.1)]


class Sae:
    """A whole SAE in float64, with an error term: what an edit by decoder delta must be equal to."""

    def __init__(self, scale, rectifier):
        self.scale, self.rectifier = scale, rectifier
        self.W_enc, self.W_dec = randn(D, 40, seed=2).double(), randn(40, D, seed=3).double()
        self.b_enc, self.b_dec = 0.1 * randn(40, seed=4).double(), randn(D, seed=5).double()

    def normalise(self, x):
        match self.scale:
            case Scale.SQRT_D:
                norm = x.norm(dim=1, keepdim=True)
                return x * math.sqrt(D) / norm, norm / math.sqrt(D), 0.0
            case Scale.LAYER_NORM:
                mean, std = x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True)
                return (x - mean) / (std + 1e-5), std, mean
            case _:
                return x, 1.0, 0.0

    def splice(self, x, feature, edit):
        """Decode the edited features, and add back what the SAE did not explain."""
        x = x.double()
        inner, std, mean = self.normalise(x)
        p = (inner - self.b_dec) @ self.W_enc + self.b_enc
        f = torch.relu(self.rectifier.gain * p + self.rectifier.offset) * (p > self.rectifier.threshold)
        decode = lambda acts: (acts @ self.W_dec + self.b_dec) * std + mean  # noqa: E731
        error = x - decode(f)
        edited = f.clone()
        edited[:, feature] = edit(f[:, feature])
        return (decode(edited) + error).float()

    def direction(self, feature):
        w = self.W_enc[:, feature]
        bias = float(self.b_enc[feature] - self.b_dec @ w)
        w = w - w.mean() if self.scale is Scale.LAYER_NORM else w
        return Direction(
            POINT, self.W_dec[feature].float(), Column(POINT, w.float(), bias, self.scale, self.rectifier)
        )


@pytest.mark.parametrize("scale", [Scale.NONE, Scale.SQRT_D, Scale.LAYER_NORM], ids=lambda s: s.name)
@pytest.mark.parametrize("rectifier", RECTIFIERS, ids=["relu", "jumprelu", "gated"])
def test_a_decoder_delta_equals_the_splice_with_its_error_term(scale, rectifier):
    sae, x = Sae(scale, rectifier), 2 * randn(20, D, seed=6) + 0.5
    clamped, _ = apply("sae_clamp", sae.direction(7), x, 4.0)
    scaled, _ = apply("sae_scale", sae.direction(7), x, 0.0)
    torch.testing.assert_close(
        clamped, sae.splice(x, 7, lambda a: torch.full_like(a, 4.0)), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(scaled, sae.splice(x, 7, lambda a: 0 * a), rtol=1e-5, atol=1e-5)
    assert not torch.equal(scaled, x)
    capped, _ = apply("sae_cap", sae.direction(7), x, 1.0)
    torch.testing.assert_close(capped, sae.splice(x, 7, lambda a: a.clamp(max=1.0)), rtol=1e-5, atol=1e-5)
    assert not torch.equal(capped, x)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_change_is_capped_relative_to_the_norm(operation):
    x = randn(50, D)
    direction = replace(Sae(Scale.NONE, Rectifier()).direction(3), offset=0.5, gap=2.0)
    strength = 0.0 if operation == "sae_cap" else 40.0
    free, _ = apply(operation, direction, x, strength)
    capped, _ = apply(operation, direction, x, strength, max_norm_ratio=0.2)
    change, free_change = capped - x, free - x
    assert (change.norm(dim=1) <= 0.2 * x.norm(dim=1) * (1 + 1e-5)).all()
    cosine = torch.cosine_similarity(change, free_change, dim=1)[free_change.norm(dim=1) > 0]
    torch.testing.assert_close(cosine, torch.ones_like(cosine))
    assert (free_change.norm(dim=1) > 0.2 * x.norm(dim=1)).any()


def test_a_change_that_is_not_finite_is_dropped_for_its_row_only():
    x, v = randn(3, D), randn(D, seed=1)
    strengths = torch.tensor([[1.0], [math.inf], [math.nan]])
    direction = Direction(POINT, v)
    steered, dropped = steer(x, vector_of("add", direction), direction, strengths)
    torch.testing.assert_close(steered[0], x[0] + v)
    assert torch.equal(steered[1:], x[1:])
    assert dropped == 2


def test_a_change_that_overflows_the_models_dtype_is_dropped():
    x = torch.full((1, D), 6e4, dtype=torch.float16)
    steered, dropped = apply("add", Direction(POINT, torch.ones(D)), x, 1e4)
    assert torch.equal(steered, x)
    assert dropped == 1


def test_the_result_has_the_models_dtype():
    x = randn(2, D).bfloat16()
    steered, _ = apply("add", Direction(POINT, randn(D, seed=1)), x, 1.0)
    assert steered.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"operation": "push"}, "unknown operation 'push'; known: add, ablate"),
        ({"directions": ()}, "one or more directions"),
        ({"directions": (Direction(POINT, torch.ones(D)),) * 2}, "at different hook points"),
        ({"directions": (Direction(POINT, torch.zeros(D)),)}, "all zeros"),
        ({"max_norm_ratio": 0.0}, "must be above 0"),
        ({"max_norm_ratio": math.nan}, "must be above 0"),
        ({"operation": "sae_clamp"}, "encoder row"),
        ({"operation": "affine"}, "needs an offset and a gap"),
        ({"directions": (Direction(POINT, torch.ones(D), tau=1.0),)}, "tau must be"),
    ],
)
def test_a_vector_that_cannot_work_is_refused(arguments, message):
    usual = {"name": "v", "operation": "add", "directions": (Direction(POINT, torch.ones(D)),)}
    with pytest.raises(ValueError, match=message):
        SteeringVector(**{**usual, **arguments})


@pytest.mark.parametrize(
    ("operation", "allowing"),
    [
        ("add", {"write-handle", "causal"}),
        ("ablate", {"necessary", "causal"}),
        ("sae_cap", {"necessary", "causal"}),
        ("affine", {"write-handle", "causal"}),
    ],
)
def test_a_causal_test_allows_steering_in_the_direction_that_it_tested(operation, allowing):
    encoder = Column(POINT, torch.ones(D))
    directions = (Direction(POINT, torch.ones(D), encoder, offset=0.0, gap=1.0),)
    verdicts = {v: SteeringVector("v", operation, directions, verdict=v).steerable for v in CausalVerdict}
    assert {verdict for verdict, steerable in verdicts.items() if steerable} == allowing
    assert SteeringVector("v", operation, directions).steerable is None
