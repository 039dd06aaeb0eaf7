"""One self-contained HTML page that shows why a monitor can be trusted, or why it can't."""

from monitors.lab.report.render import render
from monitors.lab.report.view import Reported

__all__ = ["Reported", "render"]
