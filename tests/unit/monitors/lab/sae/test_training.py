"""Training: a dictionary that is known is found again, and an interrupted run ends where a whole one does."""

from dataclasses import replace

import pytest
import torch

from monitors.lab.sae.jumprelu import jump, step
from monitors.lab.sae.training import Settings, train
from monitors.sae.base import SaeError

D, ATOMS, ACTIVE = 24, 32, 2


def atoms():
    v = torch.randn(ATOMS, D, generator=torch.Generator().manual_seed(1))
    return v / v.norm(dim=1, keepdim=True)


def planted(n=8000):
    """Sums of a few atoms with random weights, off centre, at a scale of its own."""
    g = torch.Generator().manual_seed(2)
    on = torch.rand(n, ATOMS, generator=g).argsort(dim=1) < ACTIVE
    weights = on * (1 + torch.rand(n, ATOMS, generator=g))
    return 5 * weights @ atoms() + 3 * torch.randn(D, generator=g)


def features(trained, x):
    p = (x - trained.b_dec) @ trained.W_enc + trained.b_enc
    return p.clamp(min=0) * (p > trained.threshold)


@pytest.mark.parametrize("kind", ["batchtopk", "jumprelu"])
def test_a_planted_dictionary_is_found_again(kind):
    x = planted()
    settings = Settings(width=48, kind=kind, k=ACTIVE, steps=1500, batch=128, learning_rate=3e-3)
    trained = train(x, settings)
    torch.testing.assert_close(trained.W_dec.norm(dim=1), torch.ones(48))
    found = (atoms() @ trained.W_dec.T).max(dim=1).values
    assert found.mean() > 0.9
    f = features(trained, x)
    assert ACTIVE / 2 < (f > 0).sum(dim=1).float().mean() < ACTIVE * 2
    error = x - (f @ trained.W_dec + trained.b_dec)
    assert error.square().sum() / (x - x.mean(dim=0)).square().sum() < 0.2


@pytest.mark.parametrize("kind", ["batchtopk", "jumprelu"])
def test_an_interrupted_training_ends_where_a_whole_one_does(tmp_path, kind):
    x = planted(500)
    settings = Settings(width=40, kind=kind, k=2, steps=12, batch=32, checkpoint_every=5)
    whole = train(x, settings)

    def stop(done, total):
        if done == 7:
            raise KeyboardInterrupt

    path = tmp_path / "training.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(x, settings, checkpoint=path, progress=stop)
    steps = []
    resumed = train(x, settings, checkpoint=path, progress=lambda done, total: steps.append(done))
    assert steps[0] == 6
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
        torch.testing.assert_close(getattr(resumed, name), getattr(whole, name), rtol=0, atol=0)
    with pytest.raises(SaeError, match="other settings or data"):
        train(x, replace(settings, k=3), checkpoint=path)


def test_straight_through_gradients_are_those_of_the_paper():
    """dH/dtheta = -K((p - theta) / eps) / eps, dJump/dtheta = -theta K(...) / eps, dJump/dp = H(p - theta)."""
    p = torch.tensor([[0.2, 0.9], [0.7, 3.0]], requires_grad=True)
    theta = torch.tensor([0.5, 1.0], requires_grad=True)
    step(p, theta).sum().backward()  # |p - theta| is below .25 for .7 and for .9
    torch.testing.assert_close(theta.grad, torch.tensor([-2.0, -2.0]))
    assert p.grad is None
    theta.grad = None
    jump(p, theta).sum().backward()
    torch.testing.assert_close(theta.grad, torch.tensor([-1.0, -2.0]))
    torch.testing.assert_close(p.grad, torch.tensor([[0.0, 0.0], [1.0, 1.0]]))


def test_rows_without_variance_are_refused():
    with pytest.raises(ValueError, match="nothing to learn"):
        train(torch.ones(10, 4), Settings(width=8, k=2))


def test_a_k_that_is_not_below_the_width_is_refused():
    with pytest.raises(ValueError, match="k is 8; must be above 0 and below the width, 8"):
        Settings(width=8, k=8)
