"""The card's section 'calibration'."""

from monitors.lab.sections.base import Section


class CalibrationSection(Section):
    """What `interlock monitor` found out in this step."""
