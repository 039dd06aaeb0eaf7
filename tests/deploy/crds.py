"""What may stand in the custom resources that are used here. Their operators' own schemas can't be had offline: these are the
fields of ours, by https://prometheus-operator.dev/docs/api-reference/api/ and https://keda.sh/docs/latest/reference/scaledobject-spec/.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]
Duration = Annotated[str, Field(pattern=r"^\d+(ms|s|m|h)$")]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Part):
    name: Text
    namespace: Text
    labels: dict[str, str] = {}


class SecretKey(Part):
    name: Text
    key: Text


class Authorization(Part):
    type: Literal["Bearer"]
    credentials: SecretKey


class PodMetricsEndpoint(Part):
    port: Text
    path: Text
    interval: Duration
    authorization: Authorization


class Selector(Part):
    matchLabels: dict[str, str]  # noqa: N815


class PodMonitorSpec(Part):
    jobLabel: Text  # noqa: N815
    selector: Selector
    podMetricsEndpoints: Annotated[list[PodMetricsEndpoint], Field(min_length=1)]  # noqa: N815


class PodMonitor(Part):
    apiVersion: Literal["monitoring.coreos.com/v1"]  # noqa: N815
    kind: Literal["PodMonitor"]
    metadata: Metadata
    spec: PodMonitorSpec


class RuleGroup(Part):
    name: Text
    rules: list[dict[str, Any]]  # promtool judges these


class PrometheusRuleSpec(Part):
    groups: Annotated[list[RuleGroup], Field(min_length=1)]


class PrometheusRule(Part):
    apiVersion: Literal["monitoring.coreos.com/v1"]  # noqa: N815
    kind: Literal["PrometheusRule"]
    metadata: Metadata
    spec: PrometheusRuleSpec


class Target(Part):
    name: Text


class Fallback(Part):
    failureThreshold: int  # noqa: N815
    replicas: int


class Trigger(Part):
    type: Literal["prometheus"]
    metricType: Literal["AverageValue", "Value"] = "AverageValue"  # noqa: N815
    metadata: dict[Literal["serverAddress", "query", "threshold"], str]


class HpaConfig(Part):
    behavior: dict[str, Any]  # as of a HorizontalPodAutoscaler, which Kubernetes' schemas have


class Advanced(Part):
    horizontalPodAutoscalerConfig: HpaConfig  # noqa: N815


class ScaledObjectSpec(Part):
    scaleTargetRef: Target  # noqa: N815
    minReplicaCount: int  # noqa: N815
    maxReplicaCount: int  # noqa: N815
    pollingInterval: int  # noqa: N815
    fallback: Fallback
    advanced: Advanced
    triggers: Annotated[list[Trigger], Field(min_length=1)]


class ScaledObject(Part):
    apiVersion: Literal["keda.sh/v1alpha1"]  # noqa: N815
    kind: Literal["ScaledObject"]
    metadata: Metadata
    spec: ScaledObjectSpec


CRDS: dict[str, type[BaseModel]] = {
    "PodMonitor": PodMonitor,
    "PrometheusRule": PrometheusRule,
    "ScaledObject": ScaledObject,
}
