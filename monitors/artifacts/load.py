"""Reads artifacts for one model. What does not fit the model, or is not what was saved, is refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from monitors.aggregate import AggregatorSpec
from monitors.artifacts.canary import CANARY_FILE, Canary, read_canary
from monitors.artifacts.files import (
    MONITOR_FILE,
    VECTOR_FILE,
    WEIGHTS_FILE,
    AggregatorFile,
    ArtifactError,
    ArtifactFile,
    MonitorFile,
    SaeReference,
    VectorFile,
    check_finite,
    check_sae_files,
    read_json,
    read_weights,
    refuse_pickles,
)
from monitors.bank import Bank
from monitors.base import Monitor, Transform, expect_tensors
from monitors.registry import MONITORS
from monitors.sae import SAE_FORMATS
from monitors.sae.base import SaeError, SparseAutoencoder
from monitors.sae_feature import SaeFeature
from monitors.sae_features import SaeFeatures, combination
from monitors.steering import Direction, SteeringVector
from monitors.types import HookPoint


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The model that artifacts must have been made for."""

    fingerprint: str
    d_model: int
    num_layers: int
    tokenizer_hash: str | None = None  # None: not compared


@dataclass(frozen=True, slots=True)
class MonitorSet:
    """What a monitors folder holds."""

    monitors: tuple[Monitor, ...] = ()
    vectors: Mapping[str, SteeringVector] = field(default_factory=dict)
    canaries: tuple[Canary, ...] = ()

    def bank(self, device: torch.device | str) -> Bank:
        return Bank(self.monitors, device)


def load_folder(
    path: Path, *, fingerprint: str, d_model: int, num_layers: int, tokenizer_hash: str | None = None
) -> MonitorSet:
    """Load every sub-folder that holds a monitor.json or a vector.json, in order of name. Raises ArtifactError."""
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such folder; give the folder whose sub-folders are the monitors")
    reader = _Reader(path, ModelIdentity(fingerprint, d_model, num_layers, tokenizer_hash))
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
    monitor_folders = [folder for folder in folders if (folder / MONITOR_FILE).exists()]
    monitors = [reader.monitor(folder) for folder in monitor_folders]
    canaries = tuple(canary for folder in monitor_folders if (canary := reader.canary(folder)))
    vectors = [reader.vector(folder) for folder in folders if (folder / VECTOR_FILE).exists()]
    _check_unique(path, "monitor", [monitor.name for monitor in monitors])
    _check_unique(path, "vector", [vector.name for vector in vectors])
    return MonitorSet(tuple(monitors), {vector.name: vector for vector in vectors}, canaries)


def load_monitor(folder: Path, model: ModelIdentity) -> Monitor:
    """Load one monitor; SAE paths are relative to the folder's parent. Raises ArtifactError."""
    return _Reader(folder.parent, model).monitor(folder)


def load_vector(folder: Path, model: ModelIdentity) -> SteeringVector:
    """Load one steering vector; SAE paths are relative to the folder's parent. Raises ArtifactError."""
    return _Reader(folder.parent, model).vector(folder)


class _Reader:
    """Reads the artifacts of one monitors folder for one model; opens each SAE once."""

    def __init__(self, root: Path, model: ModelIdentity) -> None:
        self._root = root
        self._model = model
        self._saes: dict[str, SparseAutoencoder] = {}

    def monitor(self, folder: Path) -> Monitor:
        path = folder / MONITOR_FILE
        refuse_pickles(folder)
        file = read_json(path, self._root, MonitorFile)
        hook_points = self._hook_points(path, file)
        if file.kind not in MONITORS:
            raise ArtifactError(f"{path}: unknown kind {file.kind!r}; known: {', '.join(MONITORS)}")
        train = file.aggregator.train
        try:
            return Monitor(
                name=file.name,
                transform=self._transform(folder, file, hook_points),
                aggregator=_aggregator(file.aggregator.run),
                link=file.link,
                exclude_first=file.token_scope.exclude_first,
                version=file.version,
                trained_with=None if train is None else _aggregator(train),
                calibration=file.calibration,
                evidence=file.evidence,
            )
        except ValueError as error:
            raise ArtifactError(f"{path}: {error}") from error

    def canary(self, folder: Path) -> Canary | None:
        canary = read_canary(folder, self._root)
        if canary is None:
            return None
        file = read_json(folder / MONITOR_FILE, self._root, MonitorFile)
        if (canary.monitor, canary.weights_sha256) != (file.name, file.weights_sha256):
            raise ArtifactError(
                f"{folder / CANARY_FILE}: made for other weights or another monitor; calibrate the monitor again"
            )
        return canary

    def vector(self, folder: Path) -> SteeringVector:
        path = folder / VECTOR_FILE
        refuse_pickles(folder)
        file = read_json(path, self._root, VectorFile)
        hook_points = self._hook_points(path, file)
        try:
            directions = self._directions(folder, file, hook_points)
            return SteeringVector(
                file.name,
                file.operation,
                directions,
                file.max_norm_ratio,
                file.gap,
                file.version,
                verdict=file.evidence.verdict if file.evidence else None,
                norm=file.norm,
            )
        except ValueError as error:
            raise ArtifactError(f"{path}: {error}") from error

    def _transform(self, folder: Path, file: MonitorFile, hook_points: Sequence[HookPoint]) -> Transform:
        if file.sae is not None:
            match file.kind:
                case SaeFeature.kind:
                    return self._feature(file, file.sae, hook_points)
                case SaeFeatures.kind:
                    return self._features(folder, file, file.sae, hook_points)
                case other:
                    raise ValueError(f"'sae' is for kinds 'sae_feature' and 'sae_features', not {other!r}")
        tensors = read_weights(folder / WEIGHTS_FILE, self._root, file.weights_sha256)
        transform = MONITORS[file.kind].restore(hook_points, tensors, file.params)
        self._check_width(tensors, [len(c.weight) for c in transform.columns])
        self._check_width(tensors, [f.d_model for f in transform.functions])
        if transform.params != file.params:
            raise ValueError(f"has params {file.params}; kind {file.kind!r} needs {dict(transform.params)}")
        return transform

    def _directions(
        self, folder: Path, file: VectorFile, hook_points: Sequence[HookPoint]
    ) -> tuple[Direction, ...]:
        if file.sae is not None:
            return (self._feature(file, file.sae, hook_points).direction,)
        tensors = read_weights(folder / WEIGHTS_FILE, self._root, file.weights_sha256)
        if "encoder" in tensors:
            feature = SaeFeature.restore(hook_points, tensors, file.params)
            directions: tuple[Direction, ...] = (feature.direction,)
        else:
            directions = _plain_directions(file, hook_points, tensors)
        self._check_width(tensors, [len(direction.vector) for direction in directions])
        return directions

    def _feature(
        self, file: ArtifactFile, reference: SaeReference, hook_points: Sequence[HookPoint]
    ) -> SaeFeature:
        if reference.feature is None:
            raise ValueError("'sae' names 'features'; needs one 'feature'")
        sae = self._sae(reference, file.weights_sha256, hook_points)
        if file.params:
            raise ValueError(f"has params {file.params}; a feature of an SAE folder needs none")
        feature = sae.feature(reference.feature)
        check_finite(self._root / reference.path, feature.tensors)
        return feature

    def _features(
        self, folder: Path, file: ArtifactFile, reference: SaeReference, hook_points: Sequence[HookPoint]
    ) -> SaeFeatures:
        if reference.features is None or reference.sha256 is None:
            raise ValueError(
                "'sae' needs 'features' and 'sha256', of the SAE's files, for kind 'sae_features'"
            )
        sae = self._sae(reference, reference.sha256, hook_points)
        own = read_weights(folder / WEIGHTS_FILE, self._root, file.weights_sha256)
        expect_tensors(own, {"weight": (len(reference.features),), "bias": (len(reference.features),)})
        combine, squash = combination(file.params)
        found = SaeFeatures.of(
            sae,
            reference.features,
            own["weight"],
            own["bias"],
            combine=combine,
            squash=squash,
            whole=reference.encode == "whole",
        )
        if found.readout_params != file.params:
            raise ValueError(f"has params {file.params}; needs {dict(found.readout_params)}")
        check_finite(self._root / reference.path, found.tensors)
        return found

    def _sae(
        self, reference: SaeReference, sha256: str, hook_points: Sequence[HookPoint]
    ) -> SparseAutoencoder:
        """The SAE of a reference, if it has not changed, reads where the artifact says, and fits the model."""
        if reference.format not in SAE_FORMATS:
            raise SaeError(f"unknown SAE format {reference.format!r}; known: {', '.join(SAE_FORMATS)}")
        key = f"{reference.format} {reference.path} {sha256}"
        if key not in self._saes:
            path = self._root / reference.path
            check_sae_files(path, self._root, sha256)
            self._saes[key] = SAE_FORMATS[reference.format](path)
        sae = self._saes[key]
        if hook_points != (sae.hook_point,):
            raise ValueError(
                f"hook points are {', '.join(map(str, hook_points))}, but the SAE is for {sae.hook_point}"
            )
        self._check_width({"W_dec": sae.W_dec}, [sae.W_dec.shape[1], sae.W_enc.shape[0]])
        return sae

    def _hook_points(self, path: Path, file: ArtifactFile) -> tuple[HookPoint, ...]:
        """Check that the artifact is for this model, and read its hook points."""
        model = self._model
        if file.model.fingerprint != model.fingerprint:
            raise ArtifactError(
                f"{path}: made for the model with fingerprint {file.model.fingerprint}; this one has {model.fingerprint}. "
                "Serve that model, or fit and calibrate the monitor on this one"
            )
        if file.model.d_model != model.d_model:
            raise ArtifactError(f"{path}: d_model is {file.model.d_model}; this model has {model.d_model}")
        if file.tokenizer_hash and model.tokenizer_hash and file.tokenizer_hash != model.tokenizer_hash:
            raise ArtifactError(
                f"{path}: made with tokenizer and chat template {file.tokenizer_hash}; this model has "
                f"{model.tokenizer_hash}. Serve with that one, or fit and calibrate the monitor with this one"
            )
        try:
            hook_points = tuple(map(HookPoint.parse, file.hook_points))
        except ValueError as error:
            raise ArtifactError(f"{path}: {error}") from error
        for point in hook_points:
            if point.layer >= model.num_layers:
                raise ArtifactError(
                    f"{path}: {point} is beyond this model, which has layers 0 to {model.num_layers - 1}"
                )
        if len(set(hook_points)) != len(hook_points):
            raise ArtifactError(f"{path}: hook points repeat: {', '.join(file.hook_points)}")
        return hook_points

    def _check_width(self, tensors: Mapping[str, Tensor], widths: Sequence[int]) -> None:
        if any(width != self._model.d_model for width in widths):
            shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
            raise ValueError(f"weights have shapes {shapes}; this model's d_model is {self._model.d_model}")


def _plain_directions(
    file: VectorFile, hook_points: Sequence[HookPoint], tensors: Mapping[str, Tensor]
) -> tuple[Direction, ...]:
    shapes: dict[str, tuple[int | str, ...]] = {"vector": (len(hook_points), "d_model")}
    if file.operation == "affine":
        shapes |= {"offset": (len(hook_points),), "gap": (len(hook_points),)}
    expect_tensors(tensors, shapes)
    tau = file.params.get("tau", 0.0)
    if (
        file.params.keys() - {"tau"}
        or isinstance(tau, str)
        or ("tau" in file.params) != (file.operation == "cosine_gated")
    ):
        raise ValueError(
            f"has params {file.params}; {file.operation} needs "
            + ("only the number 'tau'" if file.operation == "cosine_gated" else "none")
        )
    directions = tuple(Direction(p, v, tau=tau) for p, v in zip(hook_points, tensors["vector"], strict=True))
    if file.operation != "affine":
        return directions
    offsets, gaps = tensors["offset"].tolist(), tensors["gap"].tolist()
    return tuple(replace(d, offset=o, gap=g) for d, o, g in zip(directions, offsets, gaps, strict=True))


def _check_unique(path: Path, what: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ArtifactError(f"{path}: two {what}s are named {', '.join(twice)}; rename one in its JSON file")


def _aggregator(file: AggregatorFile) -> AggregatorSpec:
    return AggregatorSpec(file.kind, file.alpha, file.window, file.temperature)
