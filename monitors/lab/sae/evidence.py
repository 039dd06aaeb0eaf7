"""Writes the result of an SAE's acceptance test into the monitors that use it."""

from dataclasses import replace
from pathlib import Path

from monitors.artifacts import ArtifactError, ModelIdentity, load_monitor, save_monitor
from monitors.artifacts.files import MONITOR_FILE, MonitorFile, read_json
from monitors.base import Evidence, Monitor
from monitors.lab.subject import Subject
from monitors.sae.base import SparseAutoencoder
from monitors.sae_feature import SaeFeature


def write_accepted(
    folder: Path, subject: Subject, sae: SparseAutoencoder, sae_sha256: str, *, accepted: bool
) -> None:
    """Set `evidence.accepted` of a monitor that reads this very SAE. Raises ArtifactError for any other."""
    file = read_json(folder / MONITOR_FILE, folder.parent, MonitorFile)
    identity = ModelIdentity(subject.fingerprint, subject.blocks.d_model, len(subject.blocks.layers))
    monitor = load_monitor(folder, identity)
    uses_it = _copies_feature(monitor, sae) if file.sae is None else file.weights_sha256 == sae_sha256
    if not uses_it:
        raise ArtifactError(
            f"{folder / MONITOR_FILE}: does not use the SAE that was tested; leave it out, or test its own SAE"
        )
    evidence = replace(monitor.evidence or Evidence(), accepted=accepted)
    save_monitor(
        replace(monitor, evidence=evidence),
        folder,
        fingerprint=subject.fingerprint,
        tokenizer_hash=file.tokenizer_hash,
        sae=file.sae,
    )


def _copies_feature(monitor: Monitor, sae: SparseAutoencoder) -> bool:
    """Whether weights of its own are those of the feature that it names."""
    own = monitor.transform
    if not isinstance(own, SaeFeature) or own.feature is None or own.feature >= sae.num_features:
        return False
    theirs = sae.feature(own.feature)
    same = all(tensor.equal(theirs.tensors[name]) for name, tensor in own.tensors.items())
    return same and (own.hook_point, own.scale) == (theirs.hook_point, theirs.scale)
