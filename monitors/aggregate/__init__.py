"""Aggregators: running values per monitor from its raw values so far. Definitions: science, section 1.2."""

from monitors.aggregate.base import Aggregator, Array
from monitors.aggregate.spec import AGGREGATORS, BY_ATTENTION, ELEMENTWISE, AggregatorSpec

__all__ = ["AGGREGATORS", "BY_ATTENTION", "ELEMENTWISE", "Aggregator", "AggregatorSpec", "Array"]
