"""Probes of several heads, each of which looks for the tokens that matter: by attention, or by the largest value (MultiMax)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from monitors.aggregate import BY_ATTENTION
from monitors.base import Params, RowFunction, Transform, expect_tensors, only_hook_point
from monitors.front import Front, front_shapes
from monitors.types import HookPoint


@dataclass(frozen=True, slots=True, eq=False)
class Attention(Transform):
    """sum over heads h of sum_t softmax_t(q_h . y_t) (v_h . y_t + b_h), with y = x (2506.10805) or front(x) (2601.11516).

    Over all tokens so far (`attention`), or in the window where a head's mean is largest (`rolling_attention`). A bias of the
    logits would change nothing.
    """

    kind: ClassVar[str] = "attention"
    aggregators: ClassVar[frozenset[str]] = BY_ATTENTION
    hook_point: HookPoint
    query: Tensor  # [num_heads, width] float32; width is d_model, or that of the front
    value: Tensor  # [num_heads, width] float32
    value_bias: Tensor  # [num_heads] float32
    front: Front | None = None

    def __post_init__(self) -> None:
        _check_heads(self.value)

    @property
    def functions(self) -> tuple[RowFunction, ...]:
        return (self,)

    @property
    def num_values(self) -> int:
        return 2 * len(self.value)

    @property
    def d_model(self) -> int:
        return _d_model(self.front, self.value)

    def evaluate(self, x: Tensor) -> Tensor:
        """x: [n, d_model] float32 -> the logits of the heads, then their values: [n, 2 * num_heads] float32."""
        y = x if self.front is None else self.front.evaluate(x)
        return torch.cat([F.linear(y, self.query), F.linear(y, self.value, self.value_bias)], dim=1)

    def to(self, device: torch.device) -> Self:
        query, value, bias = (t.to(device) for t in (self.query, self.value, self.value_bias))
        return type(self)(self.hook_point, query, value, bias, _front_to(self.front, device))

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        own = {"query": self.query, "value": self.value, "value_bias": self.value_bias}
        return {**(self.front.tensors if self.front else {}), **own}

    @classmethod
    def restore(cls, hook_points: Sequence[HookPoint], tensors: Mapping[str, Tensor], params: Params) -> Self:
        shapes, width = front_shapes(tensors)
        heads = ("heads", width)
        expect_tensors(tensors, {**shapes, "query": heads, "value": heads, "value_bias": ("heads",)})
        return cls(
            only_hook_point(hook_points, "an attention probe"),
            tensors["query"],
            tensors["value"],
            tensors["value_bias"],
            Front.restore(tensors),
        )


@dataclass(frozen=True, slots=True, eq=False)
class MultiMax(Transform):
    """sum over heads h of max_t (v_h . y_t + b_h), with y = x or front(x) (2601.11516).

    Fit it through something softer: with the maximum in training, only one token per head and text learns, and the probe
    fires on long benign texts (82 % of them, in the paper).
    """

    kind: ClassVar[str] = "multimax"
    hook_point: HookPoint
    value: Tensor  # [num_heads, width] float32; width is d_model, or that of the front
    value_bias: Tensor  # [num_heads] float32
    front: Front | None = None

    def __post_init__(self) -> None:
        _check_heads(self.value)

    @property
    def functions(self) -> tuple[RowFunction, ...]:
        return (self,)

    @property
    def num_values(self) -> int:
        return len(self.value)

    @property
    def d_model(self) -> int:
        return _d_model(self.front, self.value)

    def evaluate(self, x: Tensor) -> Tensor:
        """x: [n, d_model] float32 -> [n, num_heads] float32."""
        y = x if self.front is None else self.front.evaluate(x)
        return F.linear(y, self.value, self.value_bias)

    def to(self, device: torch.device) -> Self:
        value, bias = self.value.to(device), self.value_bias.to(device)
        return type(self)(self.hook_point, value, bias, _front_to(self.front, device))

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        own = {"value": self.value, "value_bias": self.value_bias}
        return {**(self.front.tensors if self.front else {}), **own}

    @classmethod
    def restore(cls, hook_points: Sequence[HookPoint], tensors: Mapping[str, Tensor], params: Params) -> Self:
        shapes, width = front_shapes(tensors)
        expect_tensors(tensors, {**shapes, "value": ("heads", width), "value_bias": ("heads",)})
        point = only_hook_point(hook_points, "a MultiMax probe")
        return cls(point, tensors["value"], tensors["value_bias"], Front.restore(tensors))


def _check_heads(value: Tensor) -> None:
    if not len(value):
        raise ValueError("has no heads; needs one or more")


def _d_model(front: Front | None, value: Tensor) -> int:
    return value.shape[1] if front is None else front.d_model


def _front_to(front: Front | None, device: torch.device) -> Front | None:
    return None if front is None else front.to(device)
