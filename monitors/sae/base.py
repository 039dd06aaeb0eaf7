"""An SAE in one form, whatever file it came from. Only the features asked for are ever copied."""

from dataclasses import dataclass

from torch import Tensor

from monitors.base import Rectifier, Scale
from monitors.sae_feature import SaeFeature
from monitors.types import HookPoint


class SaeError(ValueError):
    """An SAE that can't be read, or can't be monitored feature by feature: what it is, and why not."""


@dataclass(frozen=True, slots=True, eq=False)
class Rectifiers:
    """Of all features; each tensor is [d_sae]. See Rectifier."""

    threshold: Tensor
    gain: Tensor
    offset: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SparseAutoencoder:
    """f = rectifier(scale(x) @ W_enc + b), x' = inverse_scale(f @ W_dec + b_dec). Every feature stands alone."""

    hook_point: HookPoint
    W_enc: Tensor  # [d_model, d_sae], any float dtype; may be memory-mapped
    W_dec: Tensor  # [d_sae, d_model]
    b_enc: Tensor  # [d_sae]
    b_subtracted: Tensor | None  # [d_model], subtracted from the scaled input (b_dec), or None
    scale: Scale
    rectifiers: Rectifiers | None  # None: ReLU

    @property
    def num_features(self) -> int:
        return self.W_dec.shape[0]

    def feature(self, index: int) -> SaeFeature:
        """One feature as a monitor's transform; what is constant is folded into its row and bias, in float64."""
        if not 0 <= index < self.num_features:
            raise SaeError(f"feature {index}: the SAE has features 0 to {self.num_features - 1}")
        row, bias = self.W_enc[:, index].double(), self.b_enc[index].double()
        if self.b_subtracted is not None:
            bias = bias - self.b_subtracted.double() @ row
        if self.scale is Scale.LAYER_NORM:
            row = row - row.mean()  # (x - mean(x)) . w = x . (w - mean(w))
        decoder = self.W_dec[index].float().clone()
        return SaeFeature(
            self.hook_point, index, row.float(), bias.item(), decoder, self.scale, self._rectifier(index)
        )

    def _rectifier(self, index: int) -> Rectifier:
        r = self.rectifiers
        return (
            Rectifier()
            if r is None
            else Rectifier(*(t[index].item() for t in (r.threshold, r.gain, r.offset)))
        )
