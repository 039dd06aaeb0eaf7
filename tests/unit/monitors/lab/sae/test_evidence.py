"""What the acceptance test writes into monitors."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from monitors.artifacts import ArtifactError, ModelIdentity, SaeReference, load_monitor, save_monitor
from monitors.artifacts.files import hash_files
from monitors.base import Evidence, Monitor
from monitors.hook_points import Blocks
from monitors.lab.sae.evidence import write_accepted
from monitors.lab.sae.opening import open_sae
from monitors.lab.subject import Subject
from monitors.sae.base import SaeError
from monitors.sae_features import SaeFeatures

D, F = 6, 10
IDENTITY = ModelIdentity("f", D, 3)


def write_sae(folder, seed=0):
    folder.mkdir(parents=True)
    g = torch.Generator().manual_seed(seed)
    sizes = {"W_enc": (D, F), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,)}
    save_file(
        {name: torch.randn(*size, generator=g) for name, size in sizes.items()},
        folder / "sae_weights.safetensors",
    )
    metadata = {"hook_name": "blocks.1.hook_resid_post"}
    config = {"architecture": "standard", "d_in": D, "d_sae": F, "metadata": metadata}
    (folder / "cfg.json").write_text(json.dumps(config))
    return open_sae(folder, "saelens")


@pytest.fixture
def subject():
    blocks = Blocks(tuple(nn.Identity() for _ in range(3)), D, "layers")
    return Subject("tiny", nn.Identity(), blocks, tokenize=lambda _: None, fingerprint="f")


@pytest.mark.parametrize("own_weights", [False, True])
def test_the_result_is_kept_with_the_monitor_beside_what_was_known(tmp_path, subject, own_weights):
    sae, sha256 = write_sae(tmp_path / "saes" / "a")
    monitor = Monitor("m", sae.feature(3), evidence=Evidence(auroc=0.9))
    reference = None if own_weights else SaeReference(format="saelens", path="saes/a", feature=3)
    save_monitor(monitor, tmp_path / "m", fingerprint="f", sae=reference)
    for accepted in (True, False):
        write_accepted(tmp_path / "m", subject, sae, sha256, accepted=accepted)
        assert load_monitor(tmp_path / "m", IDENTITY).evidence == Evidence(auroc=0.9, accepted=accepted)


@pytest.mark.parametrize("own_weights", [False, True])
def test_a_monitor_of_another_sae_is_left_alone(tmp_path, subject, own_weights):
    sae, _ = write_sae(tmp_path / "saes" / "a")
    other, other_sha256 = write_sae(tmp_path / "saes" / "b", seed=1)
    reference = None if own_weights else SaeReference(format="saelens", path="saes/a", feature=3)
    save_monitor(Monitor("m", sae.feature(3)), tmp_path / "m", fingerprint="f", sae=reference)
    with pytest.raises(ArtifactError, match="does not use the SAE that was tested"):
        write_accepted(tmp_path / "m", subject, other, other_sha256, accepted=True)
    assert load_monitor(tmp_path / "m", IDENTITY).evidence is None


@pytest.mark.parametrize("own_weights", [False, True])
def test_a_monitor_of_several_features_is_known_by_their_sae(tmp_path, subject, own_weights):
    sae, sha256 = write_sae(tmp_path / "saes" / "a")
    other, other_sha256 = write_sae(tmp_path / "saes" / "b", seed=1)
    reference = None if own_weights else SaeReference(format="saelens", path="saes/a", features=(3, 1))
    monitor = Monitor("m", SaeFeatures.of(sae, (3, 1), torch.ones(2), torch.zeros(2)))
    save_monitor(monitor, tmp_path / "m", fingerprint="f", sae=reference)
    with pytest.raises(ArtifactError, match="does not use the SAE that was tested"):
        write_accepted(tmp_path / "m", subject, other, other_sha256, accepted=True)
    write_accepted(tmp_path / "m", subject, sae, sha256, accepted=True)
    loaded = load_monitor(tmp_path / "m", IDENTITY)
    assert loaded.evidence == Evidence(accepted=True)
    assert loaded.transform.params == monitor.transform.params


def test_the_result_beside_an_sae_does_not_change_its_hash(tmp_path):
    _, before = write_sae(tmp_path / "a")
    (tmp_path / "a" / "acceptance.json").write_text("{}")
    assert hash_files(tmp_path / "a") == before


def test_an_unknown_format_is_told_with_the_known_ones(tmp_path):
    with pytest.raises(SaeError, match="unknown SAE format 'mine'; known: saelens, gemma_scope"):
        open_sae(tmp_path, "mine")
