"""The ways to fit a monitor. A new one is a function and a line here."""

from collections.abc import Mapping

from monitors.aggregate import AggregatorSpec
from monitors.lab.trainers.base import Settings, Trainer
from monitors.lab.trainers.linear import lda, logistic, mass_mean
from monitors.lab.trainers.sliding_window import sliding_window


def _mean(settings: Settings) -> AggregatorSpec:
    return AggregatorSpec("mean")


def _window(settings: Settings) -> AggregatorSpec:
    return AggregatorSpec("rolling_mean", window=int(settings.get("window", 16)))


TRAINERS: Mapping[str, Trainer] = {
    "logistic": Trainer(logistic, {"penalty": 1.0}, _mean),
    "mass_mean": Trainer(mass_mean, {"whiten": 0.0}, _mean),
    "lda": Trainer(lda, {}, _mean),
    "logistic_layers": Trainer(logistic, {"penalty": 1.0}, _mean, all_layers=True),
    "multilayer": Trainer(
        sliding_window,
        {"window": 16, "temperature": 1.0, "epochs": 30, "learning_rate": 1e-2, "weight_decay": 1e-3},
        _window,
        all_layers=True,
    ),
    "sliding_window": Trainer(
        sliding_window,
        {"window": 16, "temperature": 1.0, "epochs": 30, "learning_rate": 1e-2, "weight_decay": 1e-3},
        _window,
    ),
}
