"""Out-of-fold scores of a search's finished recipes, kept beside the activations: an interrupted search goes on."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from monitors.lab.recipes import Recipe
from monitors.lab.sections.base import Statistic
from monitors.lab.statistics import Floats, Ints
from monitors.lab.trainers import TRAINERS

_VERSION = 1  # raised when a trainer's results change, so that old scores are not taken for new ones


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """The scores on one set of activations, by labels, folds, statistic and seed."""

    folder: Path  # of the activations, which is named by their content
    labels: Ints
    fold: Ints
    statistic: Statistic
    seed: int
    _seen: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parts = (self.labels.astype("<i8").tobytes(), self.fold.astype("<i8").tobytes())
        object.__setattr__(self, "_seen", b"".join(hashlib.sha256(part).digest() for part in parts))

    def read(self, recipes: Sequence[Recipe]) -> dict[int, Floats]:
        """What is known: scores [n_examples] by the recipe's place in `recipes`."""
        found: dict[int, Floats] = {}
        for number, recipe in enumerate(recipes):
            path = self._path(recipe)
            if path.exists():
                found[number] = np.array(json.loads(path.read_text(encoding="utf-8")), dtype=np.float64)
        return found

    def write(self, recipe: Recipe, scores: Floats) -> None:
        """scores: [n_examples]. Written under another name first: what is there is whole."""
        path = self._path(recipe)
        path.parent.mkdir(exist_ok=True)
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(scores.tolist()), encoding="utf-8")
        unfinished.rename(path)

    def _path(self, recipe: Recipe) -> Path:
        defaults = dict(TRAINERS[recipe.trainer].settings)  # a changed default is another recipe
        parts = [_VERSION, recipe.to_part().model_dump(), defaults, self.statistic, self.seed]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode() + self._seen).hexdigest()
        return self.folder / "scores" / f"{digest[:24]}.json"
