"""The kinds of monitors. A new one is a file and a line here."""

from collections.abc import Mapping

from monitors.attention import Attention, MultiMax
from monitors.base import Transform
from monitors.condition import Condition, MeanCondition
from monitors.delta import Delta
from monitors.direction import Cosine
from monitors.linear import Linear
from monitors.mlp import Mlp
from monitors.novelty import Novelty
from monitors.polynomial import Polynomial
from monitors.sae_feature import SaeFeature
from monitors.sae_features import SaeFeatures

MONITORS: Mapping[str, type[Transform]] = {
    kind.kind: kind
    for kind in (
        Linear,
        Cosine,
        SaeFeature,
        SaeFeatures,
        Mlp,
        Polynomial,
        Condition,
        MeanCondition,
        Novelty,
        Delta,
        Attention,
        MultiMax,
    )
}
