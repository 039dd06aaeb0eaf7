"""The files of an artifact: their JSON, and how untrusted files are read. Format reference: docs/monitors.md."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from monitors.base import Calibration, Evidence, Link
from monitors.steering import MAX_NORM_RATIO, Norm
from monitors.types import CausalVerdict

MONITOR_FILE, VECTOR_FILE, WEIGHTS_FILE = "monitor.json", "vector.json", "weights.safetensors"

_MAX_JSON_BYTES = 1 << 20
_MAX_WEIGHTS_BYTES = 1 << 28
_MAX_SAE_BYTES = 1 << 35
_SAE_SUFFIXES = {".json", ".npz", ".safetensors", ".yaml", ".yml"}
_SAE_RESULTS = {"acceptance.json", "features.json"}
_PICKLES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}


class ArtifactError(Exception):
    """An artifact that must not be used: which file, what was found, what is needed, what to do."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ModelFile(_File):
    """The model that the weights were made for."""

    fingerprint: str
    d_model: int = Field(gt=0)


class SaeReference(_File):
    """Features of an SAE that lies in the monitors folder, instead of encoder rows of the artifact's own.

    `feature` is for kind sae_feature and steering vectors, whose weights_sha256 is then that of the SAE's files; `features`
    for kind sae_features, which has weights of its own besides.
    """

    format: str
    path: str  # of the SAE's folder, relative to the monitors folder
    feature: Annotated[int, Field(ge=0)] | None = None
    features: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    sha256: Sha256 | None = None  # of the SAE's files; with `features`
    encode: Literal["whole"] | None = None  # for SAEs whose features depend on each other; with `features`

    @model_validator(mode="after")
    def _names_one_or_several(self) -> Self:
        if (self.feature is None) == (self.features is None):
            raise ValueError("needs either 'feature' or 'features'")
        if self.feature is not None and (self.sha256 or self.encode):
            raise ValueError("'sha256' and 'encode' go with 'features'")
        return self


class AggregatorFile(_File):
    kind: str
    alpha: float | None = None
    window: int | None = None
    temperature: float | None = None


class AggregatorsFile(_File):
    run: AggregatorFile
    train: AggregatorFile | None = None


class TokenScopeFile(_File):
    exclude_first: int = Field(default=0, ge=0)


class ArtifactFile(_File):
    """What monitors and steering vectors have in common."""

    name: str
    version: str = "0"
    model: ModelFile
    tokenizer_hash: str | None = None
    hook_points: tuple[str, ...] = Field(min_length=1)
    params: dict[str, int | float | str] = Field(default_factory=dict)
    weights_sha256: Sha256  # of weights.safetensors, or of the SAE's files (see `hash_files`)
    sae: SaeReference | None = None


class MonitorFile(ArtifactFile):
    """monitor.json."""

    schema_: Literal["interlock.monitor/v1"] = Field(default="interlock.monitor/v1", alias="schema")
    kind: str
    aggregator: AggregatorsFile
    link: Link = Link.IDENTITY
    token_scope: TokenScopeFile = TokenScopeFile()
    calibration: Calibration | None = None
    evidence: Evidence | None = None


class VectorEvidenceFile(_File):
    verdict: CausalVerdict | None = None


class VectorFile(ArtifactFile):
    """vector.json."""

    schema_: Literal["interlock.vector/v1"] = Field(default="interlock.vector/v1", alias="schema")
    operation: str
    max_norm_ratio: float = Field(default=MAX_NORM_RATIO, gt=0)
    norm: Norm = "none"
    gap: float | None = None
    evidence: VectorEvidenceFile | None = None


_ArtifactFile = TypeVar("_ArtifactFile", bound=ArtifactFile)


def read_json(path: Path, root: Path, schema: type[_ArtifactFile]) -> _ArtifactFile:
    """Read monitor.json or vector.json, strictly: an unknown key is an error."""
    try:
        return schema.model_validate_json(read_bytes(path, root, _MAX_JSON_BYTES))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise ArtifactError(f"{path}: {problems}. The format is described in docs/monitors.md") from error


def read_weights(path: Path, root: Path, sha256: str) -> dict[str, Tensor]:
    """Read weights.safetensors: the right hash, float32 and finite."""
    data = read_bytes(path, root, _MAX_WEIGHTS_BYTES)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise _wrong_hash(path, found, sha256)
    try:
        tensors = load_safetensors(data)
    except SafetensorError as error:
        raise ArtifactError(
            f"{path}: not a safetensors file ({error}); save the tensors with safetensors"
        ) from error
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ArtifactError(
                f"{path}: tensor {name!r} is {tensor.dtype}; needs float32: cast it before saving"
            )
    check_finite(path, tensors)
    return tensors


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise ArtifactError for a NaN or an infinity: it would make every score NaN."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ArtifactError(
                f"{path}: tensor {name!r} holds NaN or infinity; needs finite numbers: fit it again"
            )


def read_bytes(path: Path, root: Path, max_bytes: int) -> bytes:
    """Read a file that must lie in `root` (where symlinks lead counts) and be no larger than `max_bytes`."""
    real = inside(path, root)
    size = real.stat().st_size
    if size > max_bytes:
        raise ArtifactError(f"{path}: {size:,} bytes; at most {max_bytes:,} are read")
    return real.read_bytes()


def inside(path: Path, root: Path) -> Path:
    """The real path. Raises ArtifactError if there is nothing, or if it lies outside of `root`."""
    try:
        real = path.resolve(strict=True)
    except OSError as error:
        raise ArtifactError(
            f"{path}: cannot be read ({error.strerror}); the artifact needs this file"
        ) from error
    if not real.is_relative_to(root.resolve()):
        raise ArtifactError(
            f"{path}: leads to {real}, outside of the monitors folder {root}; copy it into the folder"
        )
    return real


def refuse_pickles(folder: Path) -> None:
    """Raise ArtifactError if the folder holds a file that only pickle can read, even if nothing would read it."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _PICKLES:
            raise ArtifactError(f"{path}: pickle can execute code; convert it to safetensors, then delete it")


def check_sae_files(folder: Path, root: Path, sha256: str) -> None:
    """Check every file of an SAE's folder: inside, not too big, and together of the right hash."""
    inside(folder, root)
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            refuse_pickles(path)
        size = inside(path, root).stat().st_size
        if size > _MAX_SAE_BYTES:
            raise ArtifactError(f"{path}: {size:,} bytes; at most {_MAX_SAE_BYTES:,} are read")
    if (found := hash_files(folder)) != sha256:
        raise _wrong_hash(folder, found, sha256)


def hash_files(folder: Path) -> str:
    """sha256 (hex) of the lines 'name sha256' of what an SAE's folder holds in files that readers read, in order of name.

    Names are relative to the folder. What our own commands write beside an SAE does not count.
    """
    lines = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in _SAE_SUFFIXES and path.name not in _SAE_RESULTS and path.is_file():
            name = path.relative_to(folder).as_posix()
            with path.open("rb") as file:
                lines.append(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _wrong_hash(path: Path, found: str, needed: str) -> ArtifactError:
    return ArtifactError(
        f"{path}: sha256 is {found}, but the artifact was made with {needed}: "
        "the weights were changed or damaged; restore them, or make the artifact again"
    )
