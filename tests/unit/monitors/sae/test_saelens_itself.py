"""SAEs that SAELens itself writes are read alike here, and it reads what `interlock sae fit` writes. Skipped without it.

SAELens brings transformer-lens and datasets along, so it is no dependency of the tests: `pip install sae-lens` into an
environment of its own. `test_saelens.py` checks the same formulas against plain code everywhere.
"""

import warnings

import pytest
import torch

from monitors.lab.sae.training import Settings, train
from monitors.lab.sae.writing import write_saelens
from monitors.sae.saelens import read_saelens
from monitors.types import HookPoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its dependencies warn while they are imported
    sae_lens = pytest.importorskip("sae_lens")

pytestmark = pytest.mark.filterwarnings("ignore")

D, F, POINT = 12, 20, HookPoint(1)
KINDS = {
    "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig, {}),
    "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig, {}),
    "gated": (sae_lens.GatedSAE, sae_lens.GatedSAEConfig, {}),
    "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig, {"k": 4}),
    "topk, by decoder norm": (
        sae_lens.TopKSAE,
        sae_lens.TopKSAEConfig,
        {"k": 4, "rescale_acts_by_decoder_norm": True},
    ),
}
NORMS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm")


def rows() -> torch.Tensor:
    return 3 * torch.randn(50, D, generator=torch.Generator().manual_seed(9)) + 1


def theirs(kind: str, norm: str, *, apply_b_dec: bool):
    """An SAE of SAELens with weights drawn by chance."""
    sae_class, config_class, more = KINDS[kind]
    config = config_class(
        d_in=D,
        d_sae=F,
        dtype="float32",
        device="cpu",
        normalize_activations=norm,
        apply_b_dec_to_input=apply_b_dec,
        metadata=sae_lens.saes.sae.SAEMetadata(model_name="tiny", hook_name=str(POINT), prepend_bos=True),
        **more,
    )
    sae = sae_class(config)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(sae.named_parameters()):
            value = torch.randn(parameter.shape, generator=draw)
            parameter.copy_(
                value.abs() * 0.3 if name == "threshold" else value * (1 if "W_" in name else 0.3)
            )
    return sae


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("apply_b_dec", [True, False])
def test_what_saelens_writes_is_read_alike(tmp_path, kind, norm, apply_b_dec):
    sae, x = theirs(kind, norm, apply_b_dec=apply_b_dec), rows()
    sae.save_model(str(tmp_path / "sae"))
    ours = read_saelens(tmp_path / "sae")
    again = sae_lens.SAE.load_from_disk(str(tmp_path / "sae"), device="cpu")
    with torch.no_grad():
        expected = again.encode(x)
        assert 0 < (expected > 0).float().mean() < 1
        torch.testing.assert_close(ours.encode(x), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.decode(expected, x), again.decode(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["batchtopk", "jumprelu"])
def test_saelens_reads_what_is_trained_here(tmp_path, kind):
    trained = train(rows(), Settings(F, kind, 3, steps=30, batch=32))
    write_saelens(trained, tmp_path / "sae", hook_point=POINT, model_name="tiny")
    ours, x = read_saelens(tmp_path / "sae"), rows()
    found = sae_lens.SAE.load_from_disk(str(tmp_path / "sae"), device="cpu")
    assert found.cfg.metadata.hook_name == str(POINT)
    with torch.no_grad():
        features = found.encode(x)
        torch.testing.assert_close(ours.encode(x), features, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.decode(features, x), found.decode(features), rtol=1e-4, atol=1e-4)
