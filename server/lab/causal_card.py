"""The causal card on a terminal."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Column, Table

if TYPE_CHECKING:
    from monitors.lab.sections.base import Interval
    from monitors.lab.sections.causal import CausalSection, Effect


def show(section: "CausalSection") -> None:
    """Tables of what was measured, then the verdict with its reasons."""
    if section.necessity:
        console = Console()
        for table in (_effects(section), _elsewhere(section), _later(section)):
            if table.row_count:
                console.print(table)
    typer.echo(f"verdict: {section.verdict}" + (f" ({', '.join(section.flags)})" if section.flags else ""))
    for reason in section.reasons:
        typer.echo(f"- {reason}")


def _effects(section: "CausalSection") -> Table:
    title = f"{section.mode}; behaviour {section.behaviour}; share of the difference between the classes"
    found = Table("", "effect (95 %)", "null edits (95 %)", "z", "wrong sign", "p (Holm)", title=title)
    for name, effects in (("necessity", section.necessity), ("sufficiency", section.sufficiency)):
        for effect in effects:
            found.add_row(*_effect(name, effect))
    return found


def _effect(name: str, found: "Effect") -> Iterator[str]:
    yield f"{name}, nulls of equal {'size' if found.matched_by == 'norm' else 'KL'}"
    yield _interval(found.effect)
    yield f"{found.null_low:.2f} to {found.null_high:.2f}"
    yield "" if found.z is None else f"{found.z:.1f}"
    yield "" if found.wrong_sign is None else f"{found.wrong_sign:.2f}"
    yield f"{found.p_value:.3f}"


def _elsewhere(section: "CausalSection") -> Table:
    found = Table(
        Column("the same change", overflow="fold"),
        "necessity",
        "sufficiency",
        "moves that monitor, times own",
    )
    for site in section.sites:
        found.add_row(f"at {site.hook_point}", *map(_share, (site.necessity, site.sufficiency)), "")
    for one in section.positions:
        which = "the prompt's last token" if one.position == "last" else "one random token"
        found.add_row(f"of {which} alone", _share(one.necessity), _share(one.sufficiency), "")
    for other in section.unrelated:
        name = f"in the direction of {other.monitor}"
        found.add_row(name, _share(other.necessity), _share(other.sufficiency), _share(other.moved))
    return found


def _later(section: "CausalSection") -> Table:
    title = "probes at later layers: share of their class gap, AUROC"
    found = Table(
        Column(overflow="fold"),
        "removed (95 %)",
        "written (95 %)",
        "AUROC",
        "fitted anew without it",
        title=title,
    )
    for one in section.downstream:
        aurocs = (f"{one.natural_auroc:.3f}", f"{one.refit_auroc:.3f}")
        found.add_row(one.hook_point, _interval(one.removed), _interval(one.written), *aurocs)
    return found


def _interval(found: "Interval") -> str:
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def _share(found: float | None) -> str:
    return "" if found is None else f"{found:.2f}"
