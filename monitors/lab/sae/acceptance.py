"""The acceptance test of an SAE: on plain text of its model, are as many features active, and do they reconstruct as much, as published?

A wrong formula (a bias subtracted or not, a missing norm, the layer beside) does not fail: it gives wrong numbers. L0 and
the fraction of variance unexplained (FVU) tell (science, section 2.2).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from monitors.artifacts.files import ArtifactError
from monitors.base import Scale
from monitors.lab.activations import Activations
from monitors.sae.base import SparseAutoencoder
from monitors.types import HookPoint

ACCEPTANCE_FILE = "acceptance.json"
MIN_TOKENS = 2000
_MAX_RATIO = 2.0  # of L0 to the published one, and back
_MAX_EV_LOSS = 0.2  # explained variance below the published one
_CHUNK = 256  # rows encoded at once


@dataclass(frozen=True, slots=True)
class Measured:
    """What an SAE does on rows of its model."""

    num_tokens: int
    l0: float  # active features per token
    fvu: float  # sum ||x - x'||^2 / sum ||x - mean(x)||^2
    dead: float  # share of features that were never active

    @property
    def explained_variance(self) -> float:
        return 1.0 - self.fvu


@dataclass(frozen=True, slots=True)
class Published:
    """What its authors report; None where unknown."""

    l0: float | None = None
    explained_variance: float | None = None


class AcceptanceFile(BaseModel):
    """acceptance.json, beside the SAE. It counts for these files of the SAE and this model only."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_: Literal["interlock.sae-acceptance/v1"] = Field(
        default="interlock.sae-acceptance/v1", alias="schema"
    )
    sae_sha256: str
    fingerprint: str  # of the model
    hook_point: str
    num_tokens: int
    l0: float
    fvu: float
    explained_variance: float
    dead: float
    published_l0: float | None = None
    published_explained_variance: float | None = None
    accepted: bool
    reasons: tuple[str, ...] = ()  # why not
    suspects: tuple[str, ...] = ()  # known mistakes under which it would pass


@torch.inference_mode()
def measure(sae: SparseAutoencoder, rows: Callable[[], Iterator[Tensor]]) -> Measured:
    """Encode and decode rows. `rows` gives chunks [n, d_model], afresh at each call.

    Raises ValueError for rows of another width, or none.
    """
    num, total, squares = 0, torch.zeros(sae.W_dec.shape[1], dtype=torch.float64), 0.0
    active, error, fired = 0.0, 0.0, torch.zeros(sae.num_features, dtype=torch.bool)
    for chunk in rows():
        if chunk.shape[1] != sae.W_dec.shape[1]:
            raise ValueError(
                f"the SAE is for d_model {sae.W_dec.shape[1]}; this model has {chunk.shape[1]}: it is for another model"
            )
        for x in torch.split(chunk.float(), _CHUNK):
            f = sae.encode(x)
            error += (x - sae.decode(f, x)).double().square().sum().item()
            on = f > 0
            active += on.sum().item()
            fired |= on.any(dim=0)
            num += len(x)
            total += x.double().sum(dim=0)
            squares += x.double().square().sum().item()
    if not num:
        raise ValueError("no tokens to measure on")
    variance = squares - (total.square().sum() / num).item()
    fvu = error / variance if variance > 0 else math.inf
    return Measured(num, active / num, fvu, 1.0 - fired.float().mean().item())


def judge(found: Measured, published: Published) -> tuple[str, ...]:
    """Why it is not accepted; empty if it is. Raises ValueError for too few tokens to tell."""
    if found.num_tokens < MIN_TOKENS:
        raise ValueError(f"{found.num_tokens:,} tokens of plain text; needs {MIN_TOKENS:,} or more")
    reasons = []
    if not found.fvu <= 1:
        reasons.append(f"it reconstructs worse than the mean does: FVU is {found.fvu:.3g}, must be 1 or less")
    if not found.l0 > 0:
        reasons.append("no feature is ever active")
    if published.l0 is not None and not 1 / _MAX_RATIO <= found.l0 / published.l0 <= _MAX_RATIO:
        reasons.append(f"{found.l0:.3g} features are active per token; published are {published.l0:.3g}")
    ev = published.explained_variance
    if ev is not None and found.explained_variance < ev - _MAX_EV_LOSS:
        reasons.append(f"it explains {found.explained_variance:.1%} of the variance; published are {ev:.1%}")
    return tuple(reasons)


def accept(
    sae: SparseAutoencoder,
    acts: Activations,
    published: Published,
    *,
    sha256: str,
    fingerprint: str,
    exclude_first: int = 1,
) -> AcceptanceFile:
    """The whole test. `acts` hold plain text at the SAE's hook point, and perhaps at others, which are suspects."""
    found = measure(sae, rows_at(acts, sae.hook_point, exclude_first))
    reasons = judge(found, published)
    return AcceptanceFile(
        sae_sha256=sha256,
        fingerprint=fingerprint,
        hook_point=str(sae.hook_point),
        num_tokens=found.num_tokens,
        l0=found.l0,
        fvu=found.fvu,
        explained_variance=found.explained_variance,
        dead=found.dead,
        published_l0=published.l0,
        published_explained_variance=published.explained_variance,
        accepted=not reasons,
        reasons=reasons,
        suspects=suspects(sae, acts, published, exclude_first=exclude_first) if reasons else (),
    )


def variants(sae: SparseAutoencoder, mean_norm: float) -> dict[str, SparseAutoencoder]:
    """The same weights under the known mistakes. `mean_norm`: of the rows."""
    d = sae.W_dec.shape[1]
    c = math.sqrt(d) / mean_norm
    found = {
        "its input is scaled by sqrt(d) / E||x|| in training, and that is missing here": replace(
            sae,
            W_enc=sae.W_enc.float() * c,
            W_dec=sae.W_dec.float() / c,
            b_dec=None if sae.b_dec is None else sae.b_dec.float() / c,
        )
    }
    if sae.b_subtracted is None and sae.b_dec is not None:
        found["its b_dec must be subtracted from the input, and is not"] = replace(
            sae, b_subtracted=sae.b_dec
        )
    elif sae.b_subtracted is not None:
        found["its b_dec is subtracted from the input, and must not be"] = replace(sae, b_subtracted=None)
    for scale, name in {
        Scale.NONE: "no normalisation of the input",
        Scale.SQRT_D: "constant_norm_rescale",
        Scale.LAYER_NORM: "a layer norm",
    }.items():
        if scale is not sae.scale:
            found[f"it was trained with {name}, and its config says otherwise"] = replace(sae, scale=scale)
    return found


def suspects(
    sae: SparseAutoencoder, acts: Activations, published: Published, *, exclude_first: int = 1
) -> tuple[str, ...]:
    """Which known mistakes would explain that it was not accepted: under each it would pass, and reconstruct most."""
    here = rows_at(acts, sae.hook_point, exclude_first)
    norms = [chunk.norm(dim=1) for chunk in here()]
    trials = {name: (other, here) for name, other in variants(sae, torch.cat(norms).mean().item()).items()}
    for point in acts.hook_points:
        if point != sae.hook_point:
            trials[f"it reads {point}, not {sae.hook_point}"] = (sae, rows_at(acts, point, exclude_first))
    passed = {}
    for name, (other, rows) in trials.items():
        found = measure(other, rows)
        if not judge(found, published):
            passed[name] = found.fvu
    return tuple(sorted(passed, key=lambda name: passed[name])[:2])


def rows_at(acts: Activations, point: HookPoint, exclude_first: int) -> Callable[[], Iterator[Tensor]]:
    """The rows of all examples without their first tokens: those have norms of their own, and L0 is published without."""

    def rows() -> Iterator[Tensor]:
        for first in range(0, len(acts.examples), 64):
            chunk = [
                x[exclude_first:]
                for x in acts.batch(point, range(first, min(first + 64, len(acts.examples))))
            ]
            yield torch.cat(chunk)

    return rows


def neighbours(point: HookPoint, num_layers: int) -> Sequence[HookPoint]:
    """The point, and the same at the layers beside: being off by one is the commonest mistake."""
    return [
        HookPoint(layer, point.kind)
        for layer in (point.layer, point.layer - 1, point.layer + 1)
        if 0 <= layer < num_layers
    ]


def read_acceptance(folder: Path) -> AcceptanceFile | None:
    """acceptance.json of an SAE's folder, or None. Raises ArtifactError."""
    path = folder / ACCEPTANCE_FILE
    if not path.exists():
        return None
    try:
        return AcceptanceFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ArtifactError(f"{path}: can't be read; run `interlock sae check` again") from error


def write_acceptance(file: AcceptanceFile, folder: Path) -> None:
    """Write acceptance.json, by a rename."""
    path = folder / ACCEPTANCE_FILE
    unfinished = path.with_suffix(".part")
    unfinished.write_text(file.model_dump_json(by_alias=True, indent=2) + "\n", encoding="utf-8")
    unfinished.rename(path)
