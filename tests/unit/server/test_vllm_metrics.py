"""vLLM's names show what ours do."""

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from server.engines.base import EngineLoad
from server.metrics import Metrics
from server.scheduling.line import Line
from server.vllm_metrics import VllmNames

COMMON = {"model_name": "m", "engine": "0"}


@pytest.fixture
def metrics():
    metrics = Metrics(model="m")
    metrics.load.watch(lambda: EngineLoad(1, 2, 3, 4, 0.0), Line())
    metrics.registry.register(VllmNames(metrics))
    return metrics


def test_each_is_the_same_number_by_another_name(metrics):
    metrics.tokens.labels("m", "prompt").inc(7)
    metrics.ttft.labels("m").observe(0.03)
    metrics.shed.labels("draining").inc()
    value = metrics.registry.get_sample_value
    assert [value(f"vllm:{name}", COMMON) for name in ("num_requests_running", "num_requests_waiting")] == [
        1,
        2,
    ]
    assert value("vllm:kv_cache_usage_perc", COMMON) == value("vllm:gpu_cache_usage_perc", COMMON) == 0.75
    assert value("vllm:prompt_tokens_total", COMMON) == 7
    assert value("vllm:generation_tokens_total", COMMON) == 0
    assert value("vllm:time_to_first_token_seconds_bucket", {**COMMON, "le": "0.04"}) == 1
    assert value("vllm:time_to_first_token_seconds_bucket", {**COMMON, "le": "0.02"}) == 0
    assert value("vllm:time_to_first_token_seconds_sum", COMMON) == 0.03
    assert value("vllm:admission_rejections_total", {**COMMON, "reason": "draining"}) == 1


def test_what_vllm_does_not_tell_apart_is_added_up(metrics):
    for endpoint, outcome, times in (
        ("chat", "allowed", 2),
        ("messages", "blocked", 3),
        ("chat", "cancelled", 1),
    ):
        metrics.requests.labels("m", endpoint, outcome).inc(times)
    metrics.requests.labels("m", "chat", "error").inc(9)
    value = metrics.registry.get_sample_value
    assert value("vllm:request_success_total", {**COMMON, "finished_reason": "stop"}) == 5
    assert value("vllm:request_success_total", {**COMMON, "finished_reason": "abort"}) == 1


def test_the_page_can_be_parsed_and_names_no_series_twice(metrics):
    page = generate_latest(metrics.registry).decode()
    samples = [
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    ]
    assert len(samples) == len(set(samples))
    assert sum(name.startswith("vllm:") for name, _ in samples) > 50
