"""Writes the result of an SAE's acceptance test into the monitors that use it."""

from dataclasses import replace
from pathlib import Path

from monitors.artifacts import ArtifactError, ModelIdentity, load_monitor, save_monitor
from monitors.artifacts.files import MONITOR_FILE, MonitorFile, read_json
from monitors.base import Evidence, Monitor
from monitors.lab.subject import Subject
from monitors.sae.base import SaeError, SparseAutoencoder
from monitors.sae_feature import SaeFeature
from monitors.sae_features import SaeFeatures


def write_accepted(
    folder: Path, subject: Subject, sae: SparseAutoencoder, sae_sha256: str, *, accepted: bool
) -> None:
    """Set `evidence.accepted` of a monitor that reads this very SAE. Raises ArtifactError for any other."""
    file = read_json(folder / MONITOR_FILE, folder.parent, MonitorFile)
    identity = ModelIdentity(subject.fingerprint, subject.blocks.d_model, len(subject.blocks.layers))
    monitor = load_monitor(folder, identity)
    theirs = file.sae and (file.sae.sha256 or file.weights_sha256)
    uses_it = _copies_features(monitor, sae) if theirs is None else theirs == sae_sha256
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


def _copies_features(monitor: Monitor, sae: SparseAutoencoder) -> bool:
    """Whether weights of its own are those of the features that it names."""
    own = monitor.transform
    theirs: SaeFeature | SaeFeatures
    try:
        if isinstance(own, SaeFeature) and own.feature is not None:
            theirs = sae.feature(own.feature)
        elif isinstance(own, SaeFeatures):
            theirs = SaeFeatures.of(
                sae,
                own.features,
                own.weight,
                own.bias,
                combine=own.combine,
                squash=own.squash,
                whole=own.selection is not None,
            )
        else:
            return False
    except SaeError:
        return False  # of features that this one does not have
    shapes = [{name: tensor.shape for name, tensor in t.tensors.items()} for t in (own, theirs)]
    same = shapes[0] == shapes[1] and all(
        tensor.equal(theirs.tensors[name]) for name, tensor in own.tensors.items()
    )
    return same and (own.hook_point, own.params) == (theirs.hook_point, theirs.params)
