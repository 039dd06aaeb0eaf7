"""Trains an SAE on rows of the residual stream: BatchTopK (2412.06410) or JumpReLU (2407.14435) with a target L0.

Rows are centred and scaled to E||x|| = sqrt(d) while training, and the result is folded back to raw rows. The decoder's
rows have norm 1. Features that have not been active for a while learn from the error that is left (AuxK, 2406.04093).
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from monitors.lab.sae.jumprelu import jump, step
from monitors.sae.base import SaeError

_DEAD_AFTER = 20_000  # rows without activity, as the default
_AUX_WEIGHT = 1 / 32
_THRESHOLD_RATE = 0.01  # of the moving average that becomes BatchTopK's threshold
_FIRST_K = 4.0  # times k
_L0_WEIGHT = 1.0  # of (L0 / k - 1)^2
_FIRST_THRESHOLD = 0.1
_PARAMETERS = ("W_enc", "W_dec", "b_enc", "b_dec", "log_threshold")
CHECKPOINT = "training.safetensors"


@dataclass(frozen=True, slots=True)
class Settings:
    """What training depends on besides the rows."""

    width: int  # features
    kind: Literal["jumprelu", "batchtopk"] = "batchtopk"
    k: int = 32  # active features per row: exact on average (batchtopk), or the target (jumprelu)
    steps: int = 5000
    batch: int = 1024  # rows per step
    learning_rate: float = 1e-3
    seed: int = 0
    checkpoint_every: int = 500  # steps

    def __post_init__(self) -> None:
        if not 0 < self.k < self.width:
            raise ValueError(f"k is {self.k}; must be above 0 and below the width, {self.width}")
        if min(self.steps, self.batch, self.checkpoint_every) < 1 or not self.learning_rate > 0:
            raise ValueError("steps, batch and learning rate must be above 0")


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A JumpReLU SAE on raw rows, whichever way it was trained. All float32."""

    W_enc: Tensor  # [d, width]
    W_dec: Tensor  # [width, d], rows of norm 1
    b_enc: Tensor  # [width]
    b_dec: Tensor  # [d], subtracted from the input too
    threshold: Tensor  # [width]


def train(
    rows: Tensor,
    settings: Settings,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Trained:
    """Train on rows [n, d]. With `checkpoint` (a file) it goes on where it was stopped, to the same result.

    Raises SaeError for a checkpoint of other settings or rows, ValueError for rows that are all the same.
    """
    scale, centre = _normalisation(rows)
    state = _State.start(rows.shape[1], settings)
    if checkpoint is not None and checkpoint.exists():
        state.resume(checkpoint, _key(rows, settings))
    for number in range(state.done, settings.steps):
        picks = torch.Generator().manual_seed(settings.seed * 1_000_003 + number)  # resumable: by step
        chosen = torch.randint(len(rows), (settings.batch,), generator=picks)
        state.learn((rows[chosen].float() - centre) * scale)
        if checkpoint is not None and state.done % settings.checkpoint_every == 0:
            state.save(checkpoint, _key(rows, settings))
        progress(state.done, settings.steps)
    return state.folded(scale, centre)


def _normalisation(rows: Tensor) -> tuple[float, Tensor]:
    """Scale and centre that give rows a mean of 0 and a mean norm of sqrt(d)."""
    centre = rows.float().mean(dim=0)
    norm = torch.cat([(part.float() - centre).norm(dim=1) for part in torch.split(rows, 8192)]).mean().item()
    if not (norm > 0 and math.isfinite(norm)):
        raise ValueError("the rows are all the same, or not finite; there is nothing to learn")
    return math.sqrt(rows.shape[1]) / norm, centre


def _key(rows: Tensor, settings: Settings) -> str:
    """What a checkpoint belongs to."""
    sample = rows[:: max(1, len(rows) // 64)].double().sum().item()
    return json.dumps([asdict(settings), list(rows.shape), sample], sort_keys=True)


class _State:
    """Parameters, Adam's moments, and what is counted between steps."""

    def __init__(self, settings: Settings, parameters: Mapping[str, Tensor]) -> None:
        self._settings = settings
        self.w = {name: tensor.clone().requires_grad_() for name, tensor in parameters.items()}
        self._adam = torch.optim.Adam(self.w.values(), lr=settings.learning_rate, betas=(0.9, 0.999))
        self._idle = torch.zeros(settings.width, dtype=torch.int64)  # rows since each feature was active
        self._cut = torch.zeros(())  # moving average of the smallest kept activation
        self.done = 0

    @classmethod
    def start(cls, d: int, settings: Settings) -> "_State":
        draw = torch.Generator().manual_seed(settings.seed)
        W_dec = torch.randn(settings.width, d, generator=draw)
        W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
        zeros = torch.zeros(settings.width)
        thresholds = torch.full((settings.width,), math.log(_FIRST_THRESHOLD))
        parts = (W_dec.T.clone(), W_dec, zeros, torch.zeros(d), thresholds)
        return cls(settings, dict(zip(_PARAMETERS, parts, strict=True)))

    def learn(self, x: Tensor) -> None:
        """One step on normalised rows [batch, d]."""
        s, w = self._settings, self.w
        for group in self._adam.param_groups:  # constant, then down to 0 over the last fifth
            group["lr"] = s.learning_rate * min(1.0, (s.steps - self.done) / (0.2 * s.steps))
        p = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
        f, sparsity = self._features(p)
        error = x - (f @ w["W_dec"] + w["b_dec"])
        loss = error.square().sum(dim=1).mean() / x.shape[1] + sparsity + self._auxiliary(p, error.detach())
        self._adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self._after_backward(f)

    def _features(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Activations and the sparsity loss."""
        s = self._settings
        if s.kind == "batchtopk":
            positive = torch.relu(p)
            kept = positive.flatten().topk(min(int(self._current_k() * len(p)), positive.numel()))
            f = torch.zeros_like(positive).flatten().scatter(0, kept.indices, kept.values).view_as(positive)
            return f, torch.zeros(())
        threshold = self.w["log_threshold"].exp()
        l0 = step(p, threshold).sum(dim=1).mean()
        return jump(torch.relu(p), threshold), _L0_WEIGHT * (l0 / self._current_k() - 1).square()

    def _current_k(self) -> float:
        """From four times k down to k over the first half: with few winners from the start, many features never learn."""
        s = self._settings
        return s.k * max(1.0, _FIRST_K - (_FIRST_K - 1) * self.done / (0.5 * s.steps))

    def _auxiliary(self, p: Tensor, error: Tensor) -> Tensor:
        """How well the dead features that are nearest to being active explain the error that is left."""
        dead = self._idle > _DEAD_AFTER
        if not dead.any():
            return torch.zeros(())
        W_dec = self.w["W_dec"][dead]
        best = torch.relu(p[:, dead]).topk(min(len(W_dec), max(1, p.shape[1] // 8)), dim=1)
        guess = torch.zeros(len(p), len(W_dec)).scatter(1, best.indices, best.values) @ W_dec
        return _AUX_WEIGHT * (error - guess).square().sum(dim=1).mean() / error.square().sum(dim=1).mean()

    def _after_backward(self, f: Tensor) -> None:
        """Step along the sphere of the decoder's rows, and count."""
        W_dec = self.w["W_dec"]
        if W_dec.grad is not None:
            W_dec.grad -= (W_dec.grad * W_dec).sum(dim=1, keepdim=True) * W_dec
        torch.nn.utils.clip_grad_norm_(self.w.values(), 1.0)
        self._adam.step()
        W_dec /= W_dec.norm(dim=1, keepdim=True)
        active = (f > 0).any(dim=0)
        self._idle = torch.where(active, 0, self._idle + len(f))
        if self._settings.kind == "batchtopk" and active.any():
            smallest = f[f > 0].min()
            rate = _THRESHOLD_RATE if self.done else 1.0
            self._cut = (1 - rate) * self._cut + rate * smallest
        self.done += 1

    @torch.no_grad()
    def folded(self, scale: float, centre: Tensor) -> Trained:
        """To raw rows: activations are divided by the scale, which keeps the decoder's norms at 1."""
        w = {name: tensor.detach().clone() for name, tensor in self.w.items()}
        if self._settings.kind == "batchtopk":
            threshold = self._cut.expand(len(w["b_enc"])).clone()
        else:
            threshold = w["log_threshold"].exp()
        return Trained(
            w["W_enc"].contiguous(),
            w["W_dec"],
            w["b_enc"] / scale,
            w["b_dec"] / scale + centre,
            threshold / scale,
        )

    def save(self, path: Path, key: str) -> None:
        """Write a checkpoint, by a rename."""
        tensors = {name: tensor.detach() for name, tensor in self.w.items()}
        for name, parameter in self.w.items():
            tensors |= {f"adam.{name}.{part}": value for part, value in self._adam.state[parameter].items()}
        tensors |= {"idle": self._idle, "cut": self._cut, "done": torch.tensor(self.done)}
        unfinished = path.with_suffix(".part")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished, {"key": key})
        unfinished.rename(path)

    def resume(self, path: Path, key: str) -> None:
        """Take a checkpoint over. Raises SaeError if it is another training's, or none at all."""
        try:
            opened = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise SaeError(
                f"{path}: not a checkpoint ({error}); delete it, and training starts anew"
            ) from error
        with opened as file:
            if (file.metadata() or {}).get("key") != key:
                raise SaeError(
                    f"{path}: a training with other settings or data; delete it, or give another --out"
                )
            for name, parameter in self.w.items():
                with torch.no_grad():
                    parameter.copy_(file.get_tensor(name))
                parts = ("step", "exp_avg", "exp_avg_sq")
                self._adam.state[parameter] = {
                    part: file.get_tensor(f"adam.{name}.{part}")
                    for part in parts
                    if f"adam.{name}.{part}" in file.keys()  # noqa: SIM118
                }
            self._idle, self._cut = file.get_tensor("idle"), file.get_tensor("cut")
            self.done = int(file.get_tensor("done").item())
