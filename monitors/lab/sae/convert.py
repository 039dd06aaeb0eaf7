"""From the pickles in which some SAEs are published to safetensors and JSON, in a process of its own.

`torch.load(weights_only=True)` is not a safety boundary: it had two holes (science, finding 10). So it runs apart: without
network where the system lets us, with limits on memory, time and files, and only allow-listed tensors come out.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from monitors.sae import SAE_FORMATS, dictionary_learning
from monitors.sae.base import SaeError, SparseAutoencoder
from monitors.sae.converted import (
    CONFIG,
    GOODFIRE,
    OPENAI,
    QRESEARCH,
    QWEN_SCOPE,
    WEIGHTS,
    ConvertedFile,
)
from monitors.sae.files import parse_hook_point

_SCRIPT = Path(__file__).with_name("unpickle.py")
_TIMEOUT_S = 1200.0
_OPENAI_SETTINGS = ("activation", "activation_state_dict.k", "activation_state_dict.postact_fn")
_DICTIONARY_RANKS = {
    name: len(shape) for shapes in dictionary_learning.CLASSES.values() for name, shape in shapes.items()
}


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a pickle of a format may hold."""

    weights: str  # file to write
    ranks: Mapping[str, int]  # tensor -> number of dimensions
    settings: tuple[str, ...] = ()  # text and numbers
    dropped: tuple[str, ...] = ()  # entries that don't decide the formula


def _layout(shapes: Mapping[str, tuple[str, ...]], *settings: str, dropped: tuple[str, ...] = ()) -> _Layout:
    return _Layout(WEIGHTS, {name: len(shape) for name, shape in shapes.items()}, settings, dropped)


CONVERTIBLE: Mapping[str, _Layout] = {
    "dictionary_learning": _Layout(
        dictionary_learning.WEIGHTS, _DICTIONARY_RANKS, dropped=("k", "group_sizes")
    ),
    "openai": _layout(OPENAI, *_OPENAI_SETTINGS, dropped=("stats_last_nonzero",)),
    "goodfire": _layout(GOODFIRE),
    "qresearch": _layout(QRESEARCH),
    "qwen_scope": _layout(QWEN_SCOPE),
}


@dataclass(frozen=True, slots=True)
class Converted:
    """What came out."""

    sae: SparseAutoencoder
    without_network: bool  # whether the reading process had its network cut off


def convert(
    source: Path, out: Path, name: str, *, hook_point: str | None = None, k: int | None = None
) -> Converted:
    """Write a folder that the format's reader reads. Raises SaeError or OSError; then there is no folder.

    dictionary_learning's config.json lies beside its ae.pt and is copied; the others need `hook_point`, Qwen Scope also `k`.
    """
    if name not in CONVERTIBLE:
        raise SaeError(f"format {name!r} needs no conversion; these do: {', '.join(CONVERTIBLE)}")
    if out.exists():
        raise SaeError(f"{out}: exists already; give a folder that does not")
    layout = CONVERTIBLE[name]
    unfinished = out.with_name(f"{out.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        if name != "dictionary_learning":
            _check_point(hook_point, source)
        settings, without_network = _unpickle(source, unfinished / layout.weights, layout)
        _write_config(source, unfinished, name, settings, hook_point=hook_point, k=k)
        SAE_FORMATS[name](unfinished)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Converted(SAE_FORMATS[name](out), without_network)


def _check_point(hook_point: str | None, source: Path) -> None:
    if hook_point is None:
        raise SaeError(
            f"{source}: the file does not say where it reads; give --hook-point blocks.<layer>.hook_resid_post"
        )
    parse_hook_point(hook_point, source)


def _unpickle(source: Path, target: Path, layout: _Layout) -> tuple[dict[str, object], bool]:
    """Run the script; its settings, and whether it had no network."""
    job = {
        "source": str(source.resolve(strict=True)),
        "size": source.stat().st_size,
        "target": str(target.resolve()),
        "ranks": dict(layout.ranks),
        "settings": list(layout.settings),
        "dropped": list(layout.dropped),
    }
    fence = _fence()
    result = subprocess.run(  # noqa: S603 - our own script, no shell
        [*fence, sys.executable, "-I", str(_SCRIPT)],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        env={"OMP_NUM_THREADS": "1", "PATH": ""},  # no tokens, no proxies
        check=False,
    )
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [
            f"the process ended with {result.returncode} (out of memory or time)"
        ]
        raise SaeError(f"{source}: {lines[-1]}")
    settings = json.loads(result.stdout)
    return settings, bool(fence)


def _fence() -> list[str]:
    """A command prefix that cuts off the network (a user and a network namespace of its own), where the system allows it."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return []
    fence = [unshare, "--user", "--map-current-user", "--net"]
    probe = subprocess.run([*fence, sys.executable, "-I", "-c", ""], capture_output=True, check=False)  # noqa: S603
    return [] if probe.returncode else fence


def _write_config(
    source: Path,
    out: Path,
    name: str,
    settings: Mapping[str, object],
    *,
    hook_point: str | None,
    k: int | None,
) -> None:
    if name == "dictionary_learning":
        beside = source.with_name("config.json")
        if not beside.exists():
            raise SaeError(f"{beside}: missing; dictionary_learning keeps it beside {source.name}")
        shutil.copyfile(beside, out / "config.json")
        return
    activation = settings.get("activation", "TopK" if k else "ReLU")
    if settings.get("activation_state_dict.postact_fn", "ReLU") != "ReLU":
        raise SaeError(
            f"{source}: postact_fn is {settings['activation_state_dict.postact_fn']!r}; known: ReLU"
        )
    config = {
        "hook_point": hook_point,
        "activation": activation,
        "k": settings.get("activation_state_dict.k", k),
    }
    try:
        file = ConvertedFile.model_validate(config)
    except ValueError as error:
        raise SaeError(
            f"{source}: activation is {activation!r}; known: ReLU, TopK (which needs k)"
        ) from error
    (out / CONFIG).write_text(file.model_dump_json(indent=2, exclude_none=True) + "\n", encoding="utf-8")
