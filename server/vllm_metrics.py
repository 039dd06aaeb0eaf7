"""Some of this server's metrics once more, by vLLM's names: for dashboards, autoscalers and routers that were made for it.

Those names hold a colon, which Prometheus keeps for recording rules, so they are only shown where they were asked for.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from server.metrics import Metrics


class _Source(Protocol):
    def collect(self) -> Iterable[Metric]: ...


@dataclass(frozen=True, slots=True)
class _Alias:
    """One metric of vLLM's: those children of ours that have the labels `of`, with `labels` instead of their own."""

    name: str
    source: _Source
    of: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)  # vLLM's: a text, or "$ours" for one of ours

    def samples(self, common: Mapping[str, str]) -> Iterator[tuple[Metric, Sample]]:
        for family in self.source.collect():
            for sample in family.samples:
                if all(sample.labels.get(name) == value for name, value in self.of.items()):
                    yield family, self._renamed(family, sample, common)

    def _renamed(self, family: Metric, sample: Sample, common: Mapping[str, str]) -> Sample:
        own = {
            name: sample.labels[value[1:]] if value.startswith("$") else value
            for name, value in self.labels.items()
        }
        if "le" in sample.labels:
            own["le"] = sample.labels["le"]
        return Sample(self.name + sample.name.removeprefix(family.name), {**common, **own}, sample.value)


class VllmNames(Collector):
    """Children of one name are added up where vLLM tells them apart less than we do."""

    def __init__(self, metrics: Metrics) -> None:
        self._common = {"model_name": metrics.model, "engine": "0"}
        finished = {
            outcome: "abort"
            if outcome == "cancelled"
            else "stop"  # what ended by its length is told as stop, too
            for outcome in ("allowed", "annotated", "steered", "replaced", "blocked", "cancelled")
        }
        self._aliases = (
            _Alias("vllm:num_requests_running", metrics.load.running),
            _Alias("vllm:num_requests_waiting", metrics.load.waiting),
            _Alias("vllm:kv_cache_usage_perc", metrics.load.kv_usage),
            _Alias(
                "vllm:gpu_cache_usage_perc", metrics.load.kv_usage
            ),  # its older name, which routers still read
            _Alias("vllm:prompt_tokens", metrics.tokens, {"type": "prompt"}),
            _Alias("vllm:generation_tokens", metrics.tokens, {"type": "completion"}),
            *(
                _Alias(
                    "vllm:request_success",
                    metrics.requests,
                    {"outcome": outcome},
                    {"finished_reason": reason},
                )
                for outcome, reason in finished.items()
            ),
            _Alias("vllm:admission_rejections", metrics.shed, {}, {"reason": "$reason"}),
            _Alias("vllm:time_to_first_token_seconds", metrics.ttft),
            _Alias("vllm:inter_token_latency_seconds", metrics.itl),
            _Alias("vllm:e2e_request_latency_seconds", metrics.duration),
            _Alias("vllm:request_queue_time_seconds", metrics.queue),
        )

    def describe(self) -> Iterator[Metric]:
        """Nothing, so that registering asks for no value."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        sums: dict[tuple[str, str, tuple[tuple[str, str], ...]], float] = {}
        for alias in self._aliases:
            for family, sample in alias.samples(self._common):
                families.setdefault(alias.name, Metric(alias.name, family.documentation, family.type))
                key = alias.name, sample.name, tuple(sample.labels.items())
                sums[key] = sums.get(key, 0.0) + sample.value
        for (name, sample_name, labels), value in sums.items():
            families[name].add_sample(sample_name, dict(labels), value)
        yield from families.values()
