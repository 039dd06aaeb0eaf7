"""The SAE that a monitor's features were chosen from, or will be."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monitors.artifacts import SaeReference
    from monitors.lab.sae.source import SaeSource


def open_source(folder: Path, sae_format: str, encode: str) -> "SaeSource":
    """Raises SaeError or ArtifactError; ValueError for an encode that is neither selected nor whole."""
    from monitors.lab.sae.opening import open_sae  # noqa: PLC0415
    from monitors.lab.sae.source import SaeSource  # noqa: PLC0415

    if encode not in {"selected", "whole"}:
        raise ValueError(f"--sae-encode {encode}: must be selected or whole")
    sae, sha256 = open_sae(folder, sae_format)
    if sae.selection is not None and encode != "whole":
        raise ValueError(
            f"{folder}: which features of a {sae.selection.among} SAE are active depends on all the others; give "
            "--sae-encode whole, which computes all of them for every token, or take another SAE"
        )
    return SaeSource(sae, sha256, whole=encode == "whole")


def reference_to(
    folder: Path, sae_format: str, encode: str, monitor: Path
) -> "Callable[[tuple[int, ...]], SaeReference] | None":
    """From features to the reference in monitor.json; None if the SAE isn't in the monitors folder, so that rows are copied.

    Raises ValueError if it must be.
    """
    from monitors.artifacts import SaeReference  # noqa: PLC0415

    root, real = monitor.parent.resolve(), folder.resolve()
    if not real.is_relative_to(root):
        if encode == "whole":
            raise ValueError(
                f"{folder}: to be read whole it must lie in the monitors folder, {monitor.parent}"
            )
        return None
    path = real.relative_to(root).as_posix()
    whole = "whole" if encode == "whole" else None
    return lambda features: SaeReference(format=sae_format, path=path, features=features, encode=whole)
