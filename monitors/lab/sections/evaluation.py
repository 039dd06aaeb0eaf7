"""The card's section 'evaluation'."""

from monitors.lab.sections.base import Section


class EvaluationSection(Section):
    """What `interlock monitor` found out in this step."""
