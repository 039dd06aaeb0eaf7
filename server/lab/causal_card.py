"""The causal card on a terminal of 80 columns; the report and card.json have all of its figures."""

from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from monitors.lab.sections.causal import CausalSection


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
    found = Table(
        "null edits of equal", "effect (95 %)", "nulls (95 %)", "wrong\nsign", "p\n(Holm)", title=title
    )
    for name, effects in (("necessity", section.necessity), ("sufficiency", section.sufficiency)):
        for one in effects:
            e = one.effect
            found.add_row(
                f"{name}, {'size' if one.matched_by == 'norm' else 'KL'}",
                f"{e.value:.2f} ({e.low:.2f} to {e.high:.2f})",
                f"{one.null_low:.2f} to {one.null_high:.2f}",
                _share(one.wrong_sign),
                f"{one.p_value:.3f}",
            )
    return found


def _elsewhere(section: "CausalSection") -> Table:
    title = "the same change at other places, and in the directions of other monitors"
    found = Table("", "necessity", "sufficiency", "moves it,\ntimes own", title=title)
    for site in section.sites:
        found.add_row(site.hook_point, _share(site.necessity), _share(site.sufficiency), "")
    for place in section.positions:
        found.add_row(f"{place.position} token alone", _share(place.necessity), _share(place.sufficiency), "")
    for other in section.unrelated:
        shares = map(_share, (other.necessity, other.sufficiency, other.moved))
        found.add_row(f"towards {other.monitor}", *shares)
    return found


def _later(section: "CausalSection") -> Table:
    title = "probes at later layers: what the edits take and give, in their class gaps"
    found = Table("", "removed", "written", "AUROC", "fitted anew\nwithout it", title=title)
    for one in section.downstream:
        moved = (_share(one.removed.value), _share(one.written.value))
        found.add_row(one.hook_point, *moved, f"{one.natural_auroc:.3f}", f"{one.refit_auroc:.3f}")
    return found


def _share(found: float | None) -> str:
    return "" if found is None else f"{found:.2f}"
