"""Figures as inline SVG whose colours and fonts are the page's own, so that they follow its light and dark themes."""

import io
import re
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure


class Ink(StrEnum):
    """Stand-ins: matplotlib draws in these colours, the SVG says `var(--name)` in their place."""

    TEXT = "#010203"
    FAINT = "#040506"
    MONITOR = "#070809"
    TFIDF = "#0a0b0c"
    RANDOM = "#0d0e0f"
    BUDGET = "#101112"


_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and scaled
    "svg.hashsalt": "interlock",  # the same figure gives the same bytes
    "font.size": 11.0,
    "text.color": Ink.TEXT,
    "axes.labelcolor": Ink.TEXT,
    "axes.edgecolor": Ink.FAINT,
    "xtick.color": Ink.TEXT,
    "ytick.color": Ink.TEXT,
    "grid.color": Ink.FAINT,
    "grid.alpha": 0.35,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
}
_NAMES = {ink.value: f"var(--{ink.name.lower()})" for ink in Ink}


def draw(plot: Callable[[Axes], None], title: str, *, size: tuple[float, float] = (7.2, 3.6)) -> Markup:
    """Draw one pair of axes. `title` is what a screen reader says; size in inches. Safe to insert as it is."""
    style = {key: str(value) if isinstance(value, Ink) else value for key, value in _STYLE.items()}
    with mpl.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        plot(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub("|".join(_NAMES), lambda found: _NAMES[found[0]], svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font: \1px var(--font)", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    label = Markup('<svg role="img" aria-label="{}"').format(title)
    return Markup(svg.replace("<svg", label, 1))  # noqa: S704  matplotlib escapes what it draws, the title was escaped
