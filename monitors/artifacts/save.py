"""Writes monitors and steering vectors as artifacts."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor

from monitors.artifacts.files import (
    MONITOR_FILE,
    VECTOR_FILE,
    WEIGHTS_FILE,
    AggregatorFile,
    AggregatorsFile,
    ArtifactFile,
    ModelFile,
    MonitorFile,
    SaeReference,
    TokenScopeFile,
    VectorEvidenceFile,
    VectorFile,
    hash_files,
    inside,
)
from monitors.base import Monitor, Params
from monitors.sae_feature import SaeFeature
from monitors.sae_features import SaeFeatures
from monitors.steering import SteeringVector


def save_monitor(
    monitor: Monitor,
    folder: Path,
    *,
    fingerprint: str,
    tokenizer_hash: str | None = None,
    sae: SaeReference | None = None,
) -> None:
    """Write a monitor's folder. With `sae`, encoder rows stay in the SAE's folder (relative to the folder's parent).

    Raises ValueError for a reference that isn't to the monitor's features.
    """
    transform = monitor.transform
    train = monitor.trained_with
    tensors, params = transform.tensors, transform.params
    of_sae = sae
    if sae is not None and isinstance(transform, SaeFeatures):
        if sae.features != transform.features:
            raise ValueError(
                f"the reference names features {sae.features}, the monitor has {transform.features}"
            )
        tensors, params, of_sae = transform.readout_tensors, transform.readout_params, None
        sae = sae.model_copy(update={"sha256": sae.sha256 or _sae_sha256(folder, sae)})
    file = MonitorFile(
        name=monitor.name,
        version=monitor.version,
        kind=transform.kind,
        model=ModelFile(fingerprint=fingerprint, d_model=monitor.d_model),
        tokenizer_hash=tokenizer_hash,
        hook_points=tuple(map(str, monitor.hook_points)),
        params={} if of_sae else dict(params),
        weights_sha256=_save_weights(folder, tensors, of_sae),
        sae=sae,
        aggregator=AggregatorsFile(
            run=AggregatorFile(**asdict(monitor.aggregator)), train=train and AggregatorFile(**asdict(train))
        ),
        link=monitor.link,
        token_scope=TokenScopeFile(exclude_first=monitor.exclude_first),
        calibration=monitor.calibration,
        evidence=monitor.evidence,
    )
    _save_json(folder / MONITOR_FILE, file)


def save_vector(
    vector: SteeringVector,
    folder: Path,
    *,
    fingerprint: str,
    tokenizer_hash: str | None = None,
    sae: SaeReference | None = None,
) -> None:
    """Write a steering vector's folder. With `sae`, as for save_monitor."""
    tensors, params = _vector_parts(vector)
    file = VectorFile(
        name=vector.name,
        version=vector.version,
        operation=vector.operation,
        model=ModelFile(fingerprint=fingerprint, d_model=len(vector.directions[0].vector)),
        tokenizer_hash=tokenizer_hash,
        hook_points=tuple(str(direction.hook_point) for direction in vector.directions),
        params={} if sae else dict(params),
        weights_sha256=_save_weights(folder, tensors, sae),
        sae=sae,
        max_norm_ratio=vector.max_norm_ratio,
        norm=vector.norm,
        gap=vector.gap,
        evidence=VectorEvidenceFile(verdict=vector.verdict) if vector.verdict else None,
    )
    _save_json(folder / VECTOR_FILE, file)


def _vector_parts(vector: SteeringVector) -> tuple[Mapping[str, Tensor], Params]:
    """Tensors and params: those of its SAE feature, or the directions as one matrix."""
    first = vector.directions[0]
    if first.encoder is None:
        tensors = {"vector": torch.stack([direction.vector for direction in vector.directions])}
        if vector.operation == "affine":
            tensors["offset"] = torch.tensor([direction.offset for direction in vector.directions])
            tensors["gap"] = torch.tensor([direction.gap for direction in vector.directions])
        return tensors, {"tau": first.tau} if vector.operation == "cosine_gated" else {}
    if len(vector.directions) != 1:
        raise ValueError(f"steering vector {vector.name!r}: an SAE feature has one hook point")
    column = first.encoder
    if column.rectifier is None:
        raise ValueError(f"steering vector {vector.name!r}: its encoder row has no rectifier")
    feature = SaeFeature(
        first.hook_point, None, column.weight, column.bias, first.vector, column.scale, column.rectifier
    )
    return feature.tensors, feature.params


def _save_weights(folder: Path, tensors: Mapping[str, Tensor], sae: SaeReference | None) -> str:
    """Returns what `weights_sha256` must be."""
    folder.mkdir(parents=True, exist_ok=True)
    if sae is not None:
        return _sae_sha256(folder, sae)
    data = save_safetensors({name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()})
    (folder / WEIGHTS_FILE).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _sae_sha256(folder: Path, sae: SaeReference) -> str:
    return hash_files(inside(folder.parent / sae.path, folder.parent))


def _save_json(path: Path, file: ArtifactFile) -> None:
    path.write_text(file.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n", encoding="utf-8")
