"""The card's section 'fit'."""

from monitors.lab.sections.base import Section


class FitSection(Section):
    """What `interlock monitor` found out in this step."""
