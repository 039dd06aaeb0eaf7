"""From collected activations to an SAE on disk: train, measure on examples that were kept back, write."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from monitors.lab.activations import Activations
from monitors.lab.sae.acceptance import Measured, measure
from monitors.lab.sae.training import CHECKPOINT, Settings, train
from monitors.lab.sae.writing import write_saelens
from monitors.sae.saelens import read_saelens
from monitors.types import HookPoint

_KEPT_BACK = 10  # every tenth example
_MIN_ROWS = 100


@dataclass(frozen=True, slots=True)
class Fitted:
    """Figures on examples that it was not trained on."""

    measured: Measured
    num_trained_on: int  # tokens


def fit_sae(
    acts: Activations,
    point: HookPoint,
    settings: Settings,
    out: Path,
    *,
    model_name: str,
    exclude_first: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Fitted:
    """Train and write a SAELens folder; a checkpoint lies beside it until then. All rows are held in memory.

    Raises ValueError for too few tokens, SaeError for a checkpoint of another training.
    """
    kept_back = range(0, len(acts.examples), _KEPT_BACK)
    used = sorted(set(range(len(acts.examples))) - set(kept_back))
    parts = [acts.rows(point, index)[exclude_first:] for index in used]
    num_rows = sum(map(len, parts))
    if num_rows < _MIN_ROWS:
        raise ValueError(
            f"{num_rows} tokens to train on; needs {_MIN_ROWS} at the very least, better millions"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = out.with_name(f"{out.name}.{CHECKPOINT}")
    rows = torch.cat(parts)
    del parts
    trained = train(rows, settings, checkpoint=checkpoint, progress=progress)
    write_saelens(trained, out, hook_point=point, model_name=model_name)
    sae = read_saelens(out)
    active = torch.zeros(sae.num_features)
    with torch.inference_mode():
        for part in torch.split(rows, 1024):
            active += (sae.encode(part) > 0).sum(dim=0)
    write_saelens(trained, out, hook_point=point, model_name=model_name, frequency=active / num_rows)
    checkpoint.unlink(missing_ok=True)
    others = [acts.rows(point, index)[exclude_first:] for index in kept_back]
    found = measure(sae, lambda: iter(others))
    return Fitted(replace(found, dead=(active == 0).float().mean().item()), num_rows)
