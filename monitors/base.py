"""What a monitor is: raw values per token (device), an aggregator, a readout and a link (host), a token scope, a calibration."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from itertools import pairwise
from typing import ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor

from monitors.aggregate import ELEMENTWISE, AggregatorSpec
from monitors.types import CausalVerdict, HookPoint

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_LAYER_NORM_EPS = 1e-5  # SAELens' and OpenAI's


class Scale(IntEnum):
    """How a row x [d] is normalised before the dot product; the result is r(x) * (x . w)."""

    NONE = 0
    UNIT = 1  # 1 / ||x||: cosine
    SQRT_D = 2  # sqrt(d) / ||x||: SAELens' constant_norm_rescale
    LAYER_NORM = 3  # 1 / (std_unbiased + 1e-5); the mean is removed by centring w

    def of(self, x: Tensor) -> Tensor:
        """The factor r of each row. x: [n, d] float32 -> [n, 1]."""
        match self:
            case Scale.NONE:
                return torch.ones_like(x[:, :1])
            case Scale.UNIT:
                return 1.0 / row_norm(x)
            case Scale.SQRT_D:
                return math.sqrt(x.shape[1]) / row_norm(x)
            case Scale.LAYER_NORM:
                return (x.std(dim=1, keepdim=True) + _LAYER_NORM_EPS).reciprocal()

    def inverse(self, x: Tensor) -> Tensor:
        """What a decoder multiplies its output with, to return to the scale of x. x: [n, d] float32 -> [n, 1].

        For LAYER_NORM that is the std without the epsilon of the way in (SAELens `run_time_activation_ln_out`).
        """
        if self is Scale.LAYER_NORM:
            return x.std(dim=1, keepdim=True)
        return self.of(x).reciprocal()


@dataclass(frozen=True, slots=True)
class Rectifier:
    """f(p) = ReLU(gain * p + offset) if p > threshold else 0: what the encoders of SAEs that act per feature share.

    ReLU: threshold 0. JumpReLU: its threshold. Gated: threshold = -b_gate, gain = exp(r_mag), offset = b_mag.
    """

    threshold: float = 0.0
    gain: float = 1.0
    offset: float = 0.0


RELU = Rectifier()


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One column of the bank: p = r(x) * (x . weight) + bias at one hook point, then the rectifier if there is one."""

    hook_point: HookPoint
    weight: Tensor  # [d_model] float32
    bias: float = 0.0
    scale: Scale = Scale.NONE
    rectifier: Rectifier | None = None

    def evaluate(self, x: Tensor) -> Tensor:
        """The plain formula; the bank computes the same for all columns at once. x: [n, d] float32 -> [n]."""
        p = (x * self.weight).sum(dim=1) * self.scale.of(x)[:, 0] + self.bias
        if self.rectifier is None:
            return p
        f = self.rectifier
        return torch.where(
            p > f.threshold, torch.relu(p * f.gain + f.offset), p * 0.0
        )  # p * 0: NaN stays NaN

    def to(self, device: torch.device) -> Self:
        return replace(self, weight=self.weight.to(device))


Params = Mapping[str, object]


class RowFunction(Protocol):
    """What columns can't say: any function of one row at one hook point, with one or several values.

    Not finite in, not finite out: what hides a broken row would hide a failure.
    """

    @property
    def hook_point(self) -> HookPoint: ...

    @property
    def d_model(self) -> int: ...

    def evaluate(self, x: Tensor) -> Tensor:
        """x: [n, d_model] float32 -> [n, num_values] float32. Differentiable; no sync."""
        ...

    def to(self, device: torch.device) -> Self: ...


class Transform(ABC):
    """A monitor kind: from weights to raw values, and from aggregates to a score. One file each, registered in MONITORS.

    The raw values of a token are the sum of its columns (one value), or the sum of its functions (`num_values`).
    """

    kind: ClassVar[str]
    aggregators: ClassVar[frozenset[str]] = ELEMENTWISE
    """Those that make sense of its values."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the bank reads for it in its one matmul per hook point."""
        return ()

    @property
    def functions(self) -> tuple[RowFunction, ...]:
        """What the bank reads for it besides; at most one per hook point."""
        return ()

    @property
    def relative_bias(self) -> float | None:
        """If a number, values are read relative to the request's reference token: its value is taken off, this is added.

        Tokens up to the reference are out of scope, and a request without a reference fails the monitor.
        """
        return None

    @property
    def num_values(self) -> int:
        """How many raw values a token has."""
        return 1

    def values(self, rows: Mapping[HookPoint, Tensor]) -> Tensor:
        """The raw values, by the plain formula; the bank computes the same for all monitors at once.

        rows: [n, d_model] float32 by hook point -> [n, num_values]. Differentiable.
        """
        parts = [column.evaluate(rows[column.hook_point])[:, None] for column in self.columns]
        parts += [function.evaluate(rows[function.hook_point]) for function in self.functions]
        return torch.stack(parts).sum(dim=0)

    def readout(self, aggregates: Tensor) -> Tensor:
        """The score before the link, of a transform of several values (a single one is the score).

        aggregates: [n, what the aggregator makes of num_values] float64 -> [n]. Differentiable.
        """
        return aggregates.sum(dim=1)

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, Tensor]:
        """What `weights.safetensors` holds, float32."""

    @property
    def params(self) -> Params:
        """What `monitor.json` holds under `params`."""
        return {}

    @classmethod
    @abstractmethod
    def restore(cls, hook_points: Sequence[HookPoint], tensors: Mapping[str, Tensor], params: Params) -> Self:
        """The reverse of `tensors` and `params`. Raises ValueError for tensors that do not fit."""


def expect_tensors(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int | str, ...]]) -> None:
    """Raise ValueError unless these tensors are there and no other. A size that is a name must be the same wherever used."""
    if tensors.keys() != shapes.keys():
        raise ValueError(
            f"has tensors {', '.join(sorted(tensors)) or 'none'}; needs exactly {', '.join(sorted(shapes))}"
        )
    sizes: dict[int | str, int] = {}
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape)
        wanted = tuple(sizes.get(size, size) for size in shape)
        fits = len(found) == len(wanted) and all(
            isinstance(w, str) or f == w for f, w in zip(found, wanted, strict=True)
        )
        if not fits:
            raise ValueError(
                f"tensor {name!r} has shape {list(found)}; needs [{', '.join(map(str, wanted))}]"
            )
        sizes.update(zip(shape, found, strict=True))


def only_hook_point(hook_points: Sequence[HookPoint], what: str) -> HookPoint:
    """The one that there is. Raises ValueError if there are several; what: `a direction`."""
    if len(hook_points) != 1:
        raise ValueError(f"{what} has one hook point, not {len(hook_points)}")
    return hook_points[0]


LAST = AggregatorSpec("last")


class Link(StrEnum):
    """The last step from aggregate to score."""

    IDENTITY = "identity"
    SIGMOID = "sigmoid"


@dataclass(frozen=True, slots=True)
class Threshold:
    """The score whose exceedance, anywhere in a request's phase, has at most this false-positive rate."""

    phase: Literal["prompt", "response", "conversation"]  # conversation: in either
    fpr: float
    value: float
    certified: bool  # enough benign requests to bound the rate at the calibration's confidence
    num_requests: int | None = None  # that it rests on; None: as many as the calibration says


@dataclass(frozen=True, slots=True)
class Reference:
    """How the maximum score of a phase was distributed over the benign requests; drift in production is told against it."""

    phase: Literal["prompt", "response"]
    num_requests: int
    quantiles: tuple[float, ...]  # at 0, 1/k, 2/k, ... 1; rising

    def __post_init__(self) -> None:
        if len(self.quantiles) < 2 or any(a > b for a, b in pairwise(self.quantiles)):  # noqa: PLR2004
            raise ValueError("quantiles of a reference: needs two or more, in rising order")


@dataclass(frozen=True, slots=True)
class RowNorm:
    """log ||x|| of the rows that the monitor read at a hook point: its mean and standard deviation over tokens."""

    hook_point: str
    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Thresholds by false-positive budget, from the maximum score of each of `num_requests` independent benign requests."""

    num_requests: int
    confidence: float
    thresholds: tuple[Threshold, ...]
    data_sha256: str = ""
    references: tuple[Reference, ...] = ()  # at most one per phase
    row_norms: tuple[RowNorm, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}, must be between 0 and 1")
        for threshold in self.thresholds:
            if not 0 < threshold.fpr < 1:
                raise ValueError(f"fpr is {threshold.fpr}, must be between 0 and 1")

    def num_requests_of(self, threshold: Threshold) -> int:
        """The independent benign requests that a threshold rests on."""
        return self.num_requests if threshold.num_requests is None else threshold.num_requests

    def threshold(self, phase: str, *, certified: bool = False) -> Threshold | None:
        """The phase's threshold whose budget is nearest to 1 % (by ratio), which trips often enough to be told by.

        With `certified`, only of those that promise a rate.
        """
        of_phase = [t for t in self.thresholds if t.phase == phase and (t.certified or not certified)]
        return min(of_phase, key=lambda t: abs(math.log(t.fpr / 0.01)), default=None)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about the monitor besides its calibration; the whole of it is in the card."""

    auroc: float | None = None
    baseline_auroc: float | None = None  # of TF-IDF on the same data
    verdict: CausalVerdict | None = None  # of the causal card; None: not tested
    accepted: bool | None = (
        None  # its SAE reconstructs plain text as published (`interlock sae check`); None: not tested, or no SAE
    )
    card: str = ""  # file name beside monitor.json


@dataclass(frozen=True, slots=True, eq=False)
class Monitor:
    """One score per token: link(readout(aggregate(raw values))).

    The first `exclude_first` tokens of the prompt (a BOS token, template tokens) are out of scope: not read, no score.
    """

    name: str  # as policies write it: prompt.<name>
    transform: Transform
    aggregator: AggregatorSpec = LAST
    link: Link = Link.IDENTITY
    exclude_first: int = 0
    version: str = "0"
    trained_with: AggregatorSpec | None = None  # if it differs from the one at run time
    calibration: Calibration | None = None
    evidence: Evidence | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"monitor name {self.name!r}: must match {_NAME.pattern}, so that policies can write it"
            )
        if self.aggregator.kind not in self.transform.aggregators:
            raise ValueError(
                f"monitor {self.name!r}: kind {self.transform.kind!r} can't be aggregated by {self.aggregator.kind!r}; "
                f"allowed: {', '.join(sorted(self.transform.aggregators))}"
            )
        if self.exclude_first < 0:
            raise ValueError(
                f"monitor {self.name!r}: exclude_first is {self.exclude_first}, must be 0 or more"
            )

    @property
    def hook_points(self) -> tuple[HookPoint, ...]:
        """What it reads, each once."""
        of_columns = [column.hook_point for column in self.transform.columns]
        return tuple(dict.fromkeys([*of_columns, *[f.hook_point for f in self.transform.functions]]))

    @property
    def d_model(self) -> int:
        """The width of the rows that it reads."""
        transform = self.transform
        widths = [len(c.weight) for c in transform.columns] + [f.d_model for f in transform.functions]
        return widths[0]


def row_norm(x: Tensor) -> Tensor:
    """[n, d] -> [n, 1]."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return norm
