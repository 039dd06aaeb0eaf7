"""An SAE in one form, whatever file it came from. For monitors, only the features asked for are ever copied."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from monitors.base import Rectifier, Scale
from monitors.sae_feature import SaeFeature
from monitors.types import HookPoint

_ROWS_AT_ONCE = 4096  # in float64


class SaeError(ValueError):
    """An SAE that can't be read, or can't be monitored feature by feature: what it is, and why not."""


@dataclass(frozen=True, slots=True, eq=False)
class Rectifiers:
    """Of all features; each tensor is [d_sae]. See Rectifier."""

    threshold: Tensor
    gain: Tensor
    offset: Tensor

    @classmethod
    def jump(cls, threshold: Tensor) -> "Rectifiers":
        """JumpReLU: p where p > threshold [d_sae], else 0."""
        t = threshold.double()
        return cls(t, torch.ones_like(t), torch.zeros_like(t))


class Among(StrEnum):
    """Which features compete for being active."""

    ALL = "topk"  # the k largest of all
    GROUP = "groupmax"  # the largest of each of k groups that lie side by side


@dataclass(frozen=True, slots=True)
class Selection:
    """Only some features stay active in a row, which depends on the others: they can't be computed one by one."""

    among: Among
    k: int

    def keep(self, f: Tensor) -> Tensor:
        """Set all but the selected to 0. f: [n, d_sae], not negative."""
        if self.among is Among.ALL:
            chosen = f.topk(min(self.k, f.shape[1]), dim=1)
            return torch.zeros_like(f).scatter(1, chosen.indices, chosen.values)
        grouped = f.reshape(len(f), self.k, -1)
        best = grouped.max(dim=2, keepdim=True)
        return torch.zeros_like(grouped).scatter(2, best.indices, best.values).flatten(1)


@dataclass(frozen=True, slots=True, eq=False)
class SparseAutoencoder:
    """f = select(rectifier((scale(x) - b_subtracted) @ W_enc + b_enc)), x' = inverse_scale(f @ W_dec + b_dec)."""

    hook_point: HookPoint
    W_enc: Tensor  # [d_model, d_sae], any float dtype; may be memory-mapped
    W_dec: Tensor  # [d_sae, d_model]
    b_enc: Tensor  # [d_sae]
    b_subtracted: Tensor | None  # [d_model], subtracted from the scaled input (b_dec), or None
    scale: Scale
    rectifiers: Rectifiers | None  # None: ReLU
    b_dec: Tensor | None = None  # [d_model]
    selection: Selection | None = None
    published_l0: float | None = None  # active features per token, as its files or folder say

    @property
    def num_features(self) -> int:
        return self.W_dec.shape[0]

    def feature(self, index: int) -> SaeFeature:
        """One feature as a monitor's transform; what is constant is folded into its row and bias, in float64.

        Raises SaeError where the feature depends on others, or does not exist.
        """
        self.check_index(index)
        if self.selection is not None:
            raise SaeError(
                f"feature {index}: {self.selection.among} SAEs are refused: which features are active depends on all the "
                "others, so selected rows are not exact"
            )
        encoder, offsets = self.encoder_rows([index])
        bias, *rectifier = offsets[:, 0].tolist()
        decoder = self.W_dec[index].float().clone()
        return SaeFeature(
            self.hook_point, index, encoder[0], bias, decoder, self.scale, Rectifier(*rectifier)
        )

    def encoder_rows(self, features: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Rows [k, d_model], and bias, threshold, gain and offset [4, k] of their features, all float32.

        What is constant is folded into them, in float64.
        """
        rows: list[Tensor] = []
        biases: list[Tensor] = []
        for chosen in torch.split(torch.tensor(list(features), dtype=torch.int64), _ROWS_AT_ONCE):
            row, bias = self.W_enc[:, chosen].T.double(), self.b_enc[chosen].double()
            if self.b_subtracted is not None:
                bias = bias - row @ self.b_subtracted.double()
            if self.scale is Scale.LAYER_NORM:
                row = row - row.mean(dim=1, keepdim=True)  # (x - mean(x)) . w = x . (w - mean(w))
            rows.append(row.float())
            biases.append(bias.float())
        bias = torch.cat(biases)
        r = self.rectifiers
        if r is None:
            parts = [torch.zeros_like(bias), torch.ones_like(bias), torch.zeros_like(bias)]
        else:
            parts = [part[list(features)].float() for part in (r.threshold, r.gain, r.offset)]
        return torch.cat(rows).contiguous(), torch.stack([bias, *parts])

    def check_index(self, index: int) -> None:
        """Raise SaeError for a feature that does not exist."""
        if not 0 <= index < self.num_features:
            raise SaeError(f"feature {index}: the SAE has features 0 to {self.num_features - 1}")

    def encode(self, x: Tensor) -> Tensor:
        """All features, selection included. x: [n, d_model] -> [n, d_sae] float32."""
        x = x.float()
        scaled = (x - _mean(x) if self.scale is Scale.LAYER_NORM else x) * self.scale.of(x)
        if self.b_subtracted is not None:
            scaled = scaled - self.b_subtracted.float()
        p = scaled @ self.W_enc.float() + self.b_enc.float()
        r = self.rectifiers
        if r is None:
            f = torch.relu(p)
        else:
            f = torch.relu(p * r.gain.float() + r.offset.float()) * (p > r.threshold.float())
        return f if self.selection is None else self.selection.keep(f)

    def decode(self, f: Tensor, x: Tensor) -> Tensor:
        """The reconstruction of x [n, d_model], from its features f [n, d_sae]."""
        y = f @ self.W_dec.float()
        if self.b_dec is not None:
            y = y + self.b_dec.float()
        y = y * self.scale.inverse(x.float())
        return y + _mean(x.float()) if self.scale is Scale.LAYER_NORM else y


def _mean(x: Tensor) -> Tensor:
    return x.mean(dim=1, keepdim=True)
