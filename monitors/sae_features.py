"""Several features of one SAE, read as one value: a weighted sum of them, or the one that stands out most (science 1.1).

Where features act for themselves, only the rows of those that are read are kept (exact). In a top-k SAE which features are
active depends on all the others: it is refused, unless the whole encoder is asked for, with its cost per token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from monitors.base import Params, RowFunction, Scale, Transform, expect_tensors, only_hook_point
from monitors.sae.base import Among, SaeError, Selection, SparseAutoencoder
from monitors.types import HookPoint

_Name = TypeVar("_Name", bound=StrEnum)


class Combine(StrEnum):
    """How the features of a row make one value, f being their activations."""

    SUM = "sum"  # sum_j weight_j g(f_j) + bias_j
    MAX = "max"  # max_j weight_j g(f_j) + bias_j: (f_j - tau_j) / s_j for weight 1 / s and bias -tau / s


class Squash(StrEnum):
    """g."""

    NONE = "none"
    LOG1P = "log1p"  # log(1 + f): a huge activation counts little more than a large one


@dataclass(frozen=True, slots=True, eq=False)
class SaeFeatures(Transform):
    """Rows of an encoder, with b_dec and the centring of a layer norm folded in, and how to combine what they give."""

    kind: ClassVar[str] = "sae_features"
    hook_point: HookPoint
    features: tuple[int, ...]  # k indices in the SAE
    weight: Tensor  # [k] float32
    bias: Tensor  # [k] float32
    encoder: Tensor  # [m, d_model] float32: of those features (m = k), or with a selection of all features
    offsets: Tensor  # [4, m] float32: bias, threshold, gain and offset of each row (see Rectifier)
    decoder: Tensor  # [k, d_model] float32
    scale: Scale = Scale.NONE
    selection: Selection | None = None
    combine: Combine = Combine.SUM
    squash: Squash = Squash.NONE
    _places: Tensor = field(init=False, repr=False)  # of the features among the rows, on the encoder's device

    def __post_init__(self) -> None:
        places = torch.tensor(self.features, dtype=torch.int64, device=self.encoder.device)
        object.__setattr__(self, "_places", places)
        num = len(self.features)
        if not num or len(set(self.features)) != num or min(self.features) < 0:
            raise ValueError(f"features are {self.features}; needs one at least, each once, from 0 on")
        if self.selection is None and len(self.encoder) != num:
            raise ValueError(f"has {len(self.encoder)} rows of an encoder for {num} features")
        if self.selection is not None and max(self.features) >= len(self.encoder):
            raise ValueError(f"feature {max(self.features)}: the encoder has {len(self.encoder)} rows")

    @classmethod
    def of(
        cls,
        sae: SparseAutoencoder,
        features: Sequence[int],
        weight: Tensor,
        bias: Tensor,
        *,
        combine: Combine = Combine.SUM,
        squash: Squash = Squash.NONE,
        whole: bool = False,
    ) -> Self:
        """Features of an SAE. weight, bias: [k]. `whole` allows SAEs whose features depend on each other.

        Raises SaeError for features that don't exist, or that need the whole encoder where it was not asked for.
        """
        for index in features:
            sae.check_index(index)
        if sae.selection is not None and not whole:
            raise SaeError(
                f"{sae.selection.among} SAEs are refused: which features are active depends on all the others, so selected rows "
                "are not exact; ask for the whole encoder ('encode': 'whole'), which is computed for every token"
            )
        rows = list(features) if sae.selection is None else range(sae.num_features)
        encoder, offsets = sae.encoder_rows(rows)
        return cls(
            sae.hook_point,
            tuple(features),
            weight.float(),
            bias.float(),
            encoder,
            offsets,
            sae.W_dec[list(features)].float(),
            sae.scale,
            sae.selection,
            combine,
            squash,
        )

    @property
    def functions(self) -> tuple[RowFunction, ...]:
        return (self,)

    @property
    def d_model(self) -> int:
        return self.encoder.shape[1]

    def activations(self, x: Tensor) -> Tensor:
        """x: [n, d_model] float32 -> [n, k] float32: not finite where a row is not."""
        bias, threshold, gain, offset = self.offsets
        p = F.linear(x, self.encoder) * self.scale.of(x) + bias
        f = torch.where(p > threshold, torch.relu(p * gain + offset), p * 0.0)  # p * 0: NaN stays NaN
        if self.selection is None:
            return f
        kept = self.selection.keep(f) + f * 0.0  # what is not selected becomes 0, even in a broken row
        return kept.index_select(1, self._places)

    def evaluate(self, x: Tensor) -> Tensor:
        """x: [n, d_model] float32 -> [n, 1] float32."""
        f = self.activations(x)
        if self.squash is Squash.LOG1P:
            f = torch.log1p(f)
        each = f * self.weight + self.bias
        if self.combine is Combine.MAX:
            return each.amax(dim=1, keepdim=True)
        return each.sum(dim=1, keepdim=True)

    @property
    def direction(self) -> Tensor:
        """What writing the features by their weights would add: [d_model]."""
        return self.weight @ self.decoder

    def to(self, device: torch.device) -> Self:
        names = ("weight", "bias", "encoder", "offsets", "decoder")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    @property
    def readout_tensors(self) -> Mapping[str, Tensor]:
        """Those that are not the SAE's."""
        return {"weight": self.weight, "bias": self.bias}

    @property
    def readout_params(self) -> Params:
        """Those that are not the SAE's."""
        return {"combine": self.combine.value, "squash": self.squash.value}

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        theirs = {"encoder": self.encoder, "offsets": self.offsets, "decoder": self.decoder}
        return {**self.readout_tensors, **theirs}

    @property
    def params(self) -> Params:
        features = " ".join(map(str, self.features))
        selection = self.selection
        among = {"selection": selection.among.value, "k": selection.k} if selection else {}
        return {**self.readout_params, "scale": self.scale.name.lower(), "features": features, **among}

    @classmethod
    def restore(cls, hook_points: Sequence[HookPoint], tensors: Mapping[str, Tensor], params: Params) -> Self:
        shapes: dict[str, tuple[int | str, ...]] = {
            "weight": ("features",),
            "bias": ("features",),
            "decoder": ("features", "d_model"),
            "encoder": ("rows", "d_model"),
            "offsets": (4, "rows"),
        }
        expect_tensors(tensors, shapes)
        scale = str(params.get("scale")).upper()
        if scale not in Scale.__members__:
            known = ", ".join(Scale.__members__).lower()
            raise ValueError(f"param 'scale' is {params.get('scale')!r}; known: {known}")
        return cls(
            only_hook_point(hook_points, "a set of SAE features"),
            _indices(params, len(tensors["weight"])),
            tensors["weight"],
            tensors["bias"],
            tensors["encoder"],
            tensors["offsets"],
            tensors["decoder"],
            Scale[scale],
            _selection(params),
            *combination(params),
        )


def combination(params: Params) -> tuple[Combine, Squash]:
    """How the features are combined. Raises ValueError."""
    return _named(params, "combine", Combine), _named(params, "squash", Squash)


def _named(params: Params, key: str, names: type[_Name]) -> _Name:
    try:
        return names(str(params.get(key)))
    except ValueError:
        raise ValueError(f"param {key!r} is {params.get(key)!r}; known: {', '.join(names)}") from None


def _indices(params: Params, num: int) -> tuple[int, ...]:
    text = params.get("features")
    words = text.split() if isinstance(text, str) else []
    if len(words) != num or not all(word.isascii() and word.isdecimal() for word in words):
        raise ValueError(f"param 'features' is {text!r}; needs {num} indices with spaces between")
    return tuple(map(int, words))


def _selection(params: Params) -> Selection | None:
    if "selection" not in params:
        return None
    k = params.get("k")
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"param 'k' is {k!r}; needs how many features are active")
    return Selection(_named(params, "selection", Among), k)
