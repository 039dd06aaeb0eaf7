"""The ways to fit a monitor. A new one is a function and a line here."""

from collections.abc import Mapping

from monitors.aggregate import BY_ATTENTION, AggregatorSpec
from monitors.base import Link
from monitors.condition import MeanCondition
from monitors.lab.trainers.attention import attention, multimax
from monitors.lab.trainers.base import Settings, Trainer
from monitors.lab.trainers.condition import last_condition, mean_condition
from monitors.lab.trainers.delta import delta
from monitors.lab.trainers.descent import DESCENT
from monitors.lab.trainers.linear import last_token, lda, logistic, mass_mean
from monitors.lab.trainers.mlp import mlp
from monitors.lab.trainers.novelty import novelty
from monitors.lab.trainers.polynomial import polynomial
from monitors.lab.trainers.sae_features import sae_features, sae_features_max
from monitors.lab.trainers.token_linear import rolling_max, sliding_window, softmax
from monitors.polynomial import Polynomial

_WINDOW = 16  # of CC++ (2601.04603)
_ROLLING_WINDOW, _TEMPERATURE = 40, 5.0  # of 2506.10805


def _mean(settings: Settings) -> AggregatorSpec:
    return AggregatorSpec("mean")


def _last(settings: Settings) -> AggregatorSpec:
    return AggregatorSpec("last")


def _window(settings: Settings) -> AggregatorSpec:
    return AggregatorSpec("rolling_mean", window=int(settings.get("window", _WINDOW)))


def _rolling_max(settings: Settings) -> AggregatorSpec:
    return AggregatorSpec("max_rolling_mean", window=int(settings.get("window", _ROLLING_WINDOW)))


def _softmax(settings: Settings) -> AggregatorSpec:
    return AggregatorSpec("softmax", temperature=settings.get("temperature", _TEMPERATURE))


def _attention(settings: Settings) -> AggregatorSpec:
    return AggregatorSpec("attention")


_LONG: Settings = {**DESCENT, "epochs": 100, "patience": 10}
_HEADS: Settings = {
    "heads": 10,
    "layers": 2,
    "width": 100,
    **_LONG,
    "learning_rate": 1e-3,
    "weight_decay": 3e-3,
}
_ROLLING = AggregatorSpec("rolling_attention", window=10)  # with _HEADS' sizes: of 2601.11516

_SLIDING = {"window": _WINDOW, "temperature": 1.0, **DESCENT}
_POLYNOMIAL = {
    "penalty": 1.0,
    "degree": 5,
    "rank": 64,
    "epochs": 30,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
}

TRAINERS: Mapping[str, Trainer] = {
    "logistic": Trainer(logistic, {"penalty": 1.0}, _mean),
    "logistic_last": Trainer(last_token, {"penalty": 1.0}, _last),
    "mass_mean": Trainer(mass_mean, {"whiten": 0.0}, _mean),
    "mass_mean_whitened": Trainer(mass_mean, {"whiten": 1.0}, _mean),
    "lda": Trainer(lda, {}, _mean),
    "logistic_layers": Trainer(logistic, {"penalty": 1.0}, _mean, all_layers=True),
    "sliding_window": Trainer(sliding_window, _SLIDING, _window),
    "multilayer": Trainer(sliding_window, _SLIDING, _window, all_layers=True),
    "max_rolling_mean": Trainer(rolling_max, {"window": _ROLLING_WINDOW, **DESCENT}, _rolling_max),
    "softmax": Trainer(softmax, {"temperature": _TEMPERATURE, **DESCENT}, _softmax),
    "attention": Trainer(
        attention,
        {"heads": 1, "layers": 0, "width": 100, **_LONG, "learning_rate": 5e-3},
        _attention,
        aggregators=BY_ATTENTION,
        run_with=(AggregatorSpec("attention"),),
    ),
    "rolling_attention": Trainer(
        attention, _HEADS, _attention, aggregators=BY_ATTENTION, run_with=(_ROLLING,)
    ),
    "multimax": Trainer(
        multimax, {**_HEADS, "temperature": _TEMPERATURE}, _softmax, run_with=(AggregatorSpec("max"),)
    ),
    "mlp": Trainer(mlp, {"width": 100, "layers": 2, **DESCENT, "learning_rate": 3e-3}, _mean),
    "sae_features": Trainer(sae_features, {"penalty": 1.0, "num_features": 16}, _mean, needs_sae=True),
    "sae_features_max": Trainer(
        sae_features_max,
        {"num_features": 16, "quantile": 0.99},
        lambda _: AggregatorSpec("max"),
        run_with=(AggregatorSpec("max"),),
        needs_sae=True,
        link=Link.IDENTITY,
    ),
    "polynomial": Trainer(polynomial, _POLYNOMIAL, _mean, aggregators=Polynomial.aggregators),
    "condition": Trainer(last_condition, {}, _last, run_with=(AggregatorSpec("last"),), link=Link.IDENTITY),
    "condition_mean": Trainer(
        mean_condition, {}, _mean, aggregators=MeanCondition.aggregators, link=Link.IDENTITY
    ),
    "delta": Trainer(
        delta, {"penalty": 1.0}, _last, run_with=(AggregatorSpec("last"),), needs_reference=True
    ),
    "novelty": Trainer(novelty, {"rank": 64}, _last, link=Link.IDENTITY),  # fitted on each token by itself
}

KIND_SETS: Mapping[str, tuple[str, ...]] = {
    "all-linear": ("logistic", "mass_mean", "mass_mean_whitened", "lda", "logistic_layers"),
    "all": tuple(
        name for name, trainer in TRAINERS.items() if not trainer.needs_sae and not trainer.needs_reference
    ),
}
"""Names for several at once, as --kind takes them."""
