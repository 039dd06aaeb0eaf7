"""The activation of one SAE feature, f_j(x), from the selected row of the encoder alone (exact; science 2.3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from monitors.base import RELU, Column, Params, Rectifier, Scale, Transform, expect_tensors, only_hook_point
from monitors.steering import Direction
from monitors.types import HookPoint


@dataclass(frozen=True, slots=True, eq=False)
class SaeFeature(Transform):
    """A feature's encoder and decoder rows, with b_dec and the centring of a layer norm folded into the encoder's."""

    kind: ClassVar[str] = "sae_feature"
    hook_point: HookPoint
    feature: int | None  # its index in the SAE, if known
    encoder: Tensor  # [d_model] float32
    bias: float
    decoder: Tensor  # [d_model] float32
    scale: Scale = Scale.NONE
    rectifier: Rectifier = RELU

    @property
    def column(self) -> Column:
        return Column(self.hook_point, self.encoder, self.bias, self.scale, self.rectifier)

    @property
    def columns(self) -> tuple[Column, ...]:
        return (self.column,)

    @property
    def direction(self) -> Direction:
        """For a steering vector with an SAE operation."""
        return Direction(self.hook_point, self.decoder, self.column)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        f = self.rectifier
        scalars = torch.tensor([self.bias, f.threshold, f.gain, f.offset], dtype=torch.float32)
        return {"encoder": self.encoder, "decoder": self.decoder, "scalars": scalars}

    @property
    def params(self) -> Params:
        scale = self.scale.name.lower()
        return {"scale": scale} if self.feature is None else {"scale": scale, "feature": self.feature}

    @classmethod
    def restore(cls, hook_points: Sequence[HookPoint], tensors: Mapping[str, Tensor], params: Params) -> Self:
        expect_tensors(tensors, {"encoder": ("d_model",), "decoder": ("d_model",), "scalars": (4,)})
        point = only_hook_point(hook_points, "an SAE feature")
        scale = str(params.get("scale")).upper()
        if scale not in Scale.__members__:
            known = ", ".join(Scale.__members__).lower()
            raise ValueError(f"param 'scale' is {params.get('scale')!r}; known: {known}")
        bias, threshold, gain, offset = tensors["scalars"].tolist()
        rectifier = Rectifier(threshold, gain, offset)
        index = params.get("feature")
        feature = index if isinstance(index, int) else None
        return cls(point, feature, tensors["encoder"], bias, tensors["decoder"], Scale[scale], rectifier)
