"""From activations to a folder that readers read, and what its features are said to stand for."""

import json

import pytest
import torch
from safetensors import safe_open
from sklearn.metrics import roc_auc_score

from monitors.base import Scale
from monitors.lab.sae.features import describe
from monitors.lab.sae.fitting import fit_sae
from monitors.lab.sae.training import Settings
from monitors.sae.base import SparseAutoencoder
from monitors.sae.saelens import read_saelens
from tests.unit.monitors.lab.synthetic import PLANTED, D, planted


def test_the_folder_is_read_back_and_says_what_was_trained(tmp_path):
    acts = planted(tmp_path / "acts", num=200)
    out = tmp_path / "saes" / "mine"
    fitted = fit_sae(acts, PLANTED, Settings(32, k=4, steps=150, batch=128), out, model_name="made")
    sae = read_saelens(out)
    assert (sae.hook_point, sae.num_features) == (PLANTED, 32)
    assert json.loads((out / "cfg.json").read_text())["metadata"]["model_name"] == "made"
    kept_back = torch.cat([acts.rows(PLANTED, i)[1:] for i in range(0, 200, 10)])
    f = sae.encode(kept_back)
    assert fitted.measured.l0 == pytest.approx((f > 0).sum(dim=1).float().mean().item())
    assert fitted.measured.num_tokens == len(kept_back)
    assert fitted.measured.fvu < 1
    used = torch.cat([acts.rows(PLANTED, i)[1:] for i in range(200) if i % 10])
    frequency = (sae.encode(used) > 0).float().mean(dim=0)
    with safe_open(out / "sparsity.safetensors", framework="pt") as file:
        torch.testing.assert_close(file.get_tensor("sparsity"), frequency.clamp(min=1e-10).log10())
    assert sorted(path.name for path in out.parent.iterdir()) == ["mine"]


def test_too_few_tokens_are_refused(tmp_path):
    acts = planted(tmp_path / "acts", num=4)
    with pytest.raises(ValueError, match="tokens to train on; needs 100"):
        fit_sae(acts, PLANTED, Settings(8, k=2), tmp_path / "out", model_name="made")


def test_features_are_described_by_their_plain_definitions(tmp_path):
    acts = planted(tmp_path / "acts", num=60)
    W = torch.randn(D, 5, generator=torch.Generator().manual_seed(3))
    W[:, 4] = 0  # is never active
    sae = SparseAutoencoder(PLANTED, W, W.T.clone(), torch.zeros(5), None, Scale.NONE, None)
    found = describe(
        sae, acts, lambda ids: [f"<{i}>" for i in ids], top=3, sha256="a", fingerprint="m", exclude_first=1
    )
    rows = [acts.rows(PLANTED, i)[1:] for i in range(60)]
    active = [torch.relu(x @ W) for x in rows]
    assert [part.index for part in found.features] == sorted(
        range(4), key=lambda j: -abs(roc_auc_score(acts.labels, [f[:, j].max() for f in active]) - 0.5)
    )
    for part in found.features:
        mine = [f[:, part.index] for f in active]
        peaks = [f.max().item() for f in mine]
        assert part.frequency == pytest.approx((torch.cat(mine) > 0).float().mean().item())
        assert part.max_activation == pytest.approx(max(peaks))
        assert part.auroc == pytest.approx(roc_auc_score(acts.labels, peaks))
        best = max(range(60), key=lambda i: peaks[i])
        context = part.contexts[0]
        assert (len(part.contexts), context.example) == (3, acts.examples[best].id)
        at = 1 + int(mine[best].argmax())
        assert context.token == f"<{at}>"
        assert context.before == "".join(f"<{i}>" for i in range(max(0, at - 8), at))
        assert "contexts" not in repr(part)


def test_no_text_is_kept_where_none_was_asked_for(tmp_path):
    acts = planted(tmp_path / "acts", num=20)
    sae = SparseAutoencoder(PLANTED, torch.eye(D), torch.eye(D), torch.zeros(D), None, Scale.NONE, None)
    found = describe(sae, acts, lambda ids: ["secret"] * len(ids), top=0, sha256="a", fingerprint="m")
    assert found.features
    assert "secret" not in found.model_dump_json()
