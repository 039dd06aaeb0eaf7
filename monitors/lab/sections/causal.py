"""The card's section 'causal'."""

from monitors.lab.sections.base import Section


class CausalSection(Section):
    """What `interlock monitor` found out in this step."""
